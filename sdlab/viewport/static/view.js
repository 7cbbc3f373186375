// Inside a view, before viser's client: how often it draws.
//
// The client draws as often as the screen can, new or not. Whoever draws by software, or distils on the same graphics
// processor, pays for every picture with steps. So it is drawn when there is something new (a message of one of the
// client's workers, which hold its connection and sort its splats) or a hand is on it; and while no hand is, pictures
// take at most a quarter of the time of what draws them.
(() => {
  const SELDOM = 100; // ms between two pictures of what changes by itself; splats come no more often
  const REST = 3; // times what a picture takes
  const STILL = 3000, STILL_REST = 10, LONGEST = 10000; // the same while nothing changes, for what no message tells of
  const AWAKE = 1500; // ms that a hand is felt
  const FIRST = 10; // pictures at the beginning, as fast as they go
  const NEWS = 3; // pictures until something new is seen: it is taken in with one, and handed on with the next
  const TELL = 200, LOOK = 4; // ms between two words to the other views, and two looks whether a picture is done
  const root = document.documentElement;

  const native = window.requestAnimationFrame.bind(window), cancel = window.cancelAnimationFrame.bind(window);
  let touched = 0, told = 0; // when
  let owed = NEWS; // pictures
  let drawn = 0, fence = null; // the last picture: when, and what tells its end
  let count = 0, took = 0, before = 0; // pictures; how long the last two took, of which one may have compiled something
  let gl = null;

  // ---- what is to be drawn for ----
  const others = new BroadcastChannel("sdlab-views"); // of one page: they turn together
  others.onmessage = () => { touched = performance.now(); hurry(); };
  for (const kind of ["pointerdown", "pointermove", "wheel", "keydown", "touchmove", "resize"])
    addEventListener(kind, () => {
      touched = performance.now();
      if (touched - told > TELL) { told = touched; others.postMessage(0); }
      hurry();
    }, { capture: true, passive: true });
  window.Worker = class extends window.Worker {
    constructor(...options) {
      super(...options);
      this.addEventListener("message", () => { owed = NEWS; hurry(); });
    }
  };

  // ---- what draws ----
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...options) {
    const context = getContext.call(this, kind, ...options);
    if (context && kind === "webgl2" && this.isConnected) gl = context;
    return context;
  };
  const busy = () => { // whether the last picture is still being drawn
    if (!fence) return false;
    const now = performance.now();
    if (gl.getSyncParameter(fence, gl.SYNC_STATUS) !== gl.SIGNALED && now - drawn < STILL && !gl.isContextLost()) return true;
    gl.deleteSync(fence);
    fence = null;
    [took, before] = [now - drawn, took];
    return false;
  };

  // ---- the client's requests ----
  const waiting = new Map(); // number -> callback
  let last = 0, timer = 0, frame = 0, drawing = false;
  const rest = () => {
    const now = performance.now();
    if (busy()) return LOOK;
    if (now - touched < AWAKE || count < FIRST) return 0;
    const usual = Math.min(took, before);
    const pause = owed > 0 ? Math.max(SELDOM, REST * usual) : Math.min(Math.max(STILL, STILL_REST * usual), LONGEST);
    return Math.max(drawn + pause - now, 0);
  };
  const plan = () => {
    if (drawing || frame || !waiting.size) return;
    clearTimeout(timer);
    timer = 0;
    const ms = rest();
    if (ms > 0) timer = setTimeout(plan, ms);
    else frame = native(draw);
  };
  const hurry = () => { if (timer) plan(); };
  const draw = (now) => {
    frame = 0;
    drawing = true;
    drawn = performance.now();
    owed -= 1;
    const callbacks = [...waiting.values()];
    waiting.clear();
    for (const callback of callbacks) try { callback(now); } catch (error) { reportError(error); }
    if (gl) {
      fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
      gl.flush();
    }
    root.dataset.drawn = ++count;
    drawing = false;
    plan();
  };
  window.requestAnimationFrame = (callback) => {
    waiting.set(++last, callback);
    plan();
    return last;
  };
  window.cancelAnimationFrame = (number) => {
    if (waiting.delete(number) && !waiting.size) { clearTimeout(timer); cancel(frame); frame = timer = 0; }
  };
})();
