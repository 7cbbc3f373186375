// Runs inside a view before viser's client and limits how often it draws.
//
// The client draws at the screen's refresh rate, whether anything changed or not. With software rendering, or when the
// same GPU runs the distillation, every picture costs training steps. So the view draws at full rate only while the
// user moves it. Otherwise it draws when something is new (a message from one of the client's workers, which hold the
// connection and sort the splats), and drawing takes at most about a third of the renderer's time.
(() => {
  const SELDOM = 100; // ms between pictures while only the run changes them; splats arrive no more often
  const REST = 3; // from the start of a picture to the next, in multiples of the time that one takes
  const STILL = 3000, STILL_REST = 10, LONGEST = 10000; // the same in a still view, for changes that come without a message
  const AWAKE = 1500; // ms for which the user counts as active after an input
  const FIRST = 10; // pictures at the start are drawn at full rate
  const NEWS = 3; // pictures until something new is visible: one takes it in, the next shows it
  const EAGER = 2 * NEWS; // pictures of news that are drawn at full rate after a press on the page: Start, Step, Reset
  const TELL = 200, LOOK = 4; // ms between messages to the other views, and between checks whether a picture is done
  const SOFTWARE = /swiftshader|llvmpipe|softpipe|software|basic render/i; // in the names of renderers without a GPU
  const root = document.documentElement;

  const native = window.requestAnimationFrame.bind(window), cancel = window.cancelAnimationFrame.bind(window);
  let touched = 0, told = 0; // times
  let owed = NEWS; // pictures still to draw for news
  let eager = 0; // of them, those to be drawn at full rate
  let drawn = 0, fence = null; // time of the last picture, and the fence that signals its end
  let count = 0, took = 0, before = 0; // pictures; duration of the last two, one of which may include compiling
  let gl = null, known = false; // whether the page knows how this browser draws
  let workers = 0, unseen = Infinity; // pictures until the first Gaussians are visible

  // ---- reasons to draw ----
  const others = new BroadcastChannel("sdlab-views"); // of the same page: their cameras move together
  others.onmessage = () => { touched = performance.now(); hurry(); };
  for (const kind of ["pointerdown", "pointermove", "wheel", "keydown", "touchmove", "resize"])
    addEventListener(kind, () => {
      touched = performance.now();
      if (touched - told > TELL) { told = touched; others.postMessage(0); }
      hurry();
    }, { capture: true, passive: true });
  addEventListener("message", ({ source, data }) => { if (source === parent && data?.pressed) eager = EAGER; });
  window.Worker = class extends window.Worker {
    constructor(...options) {
      super(...options);
      const sorts = workers++ > 0; // the first holds the connection, the second sorts Gaussians when there are any
      this.addEventListener("message", () => {
        owed = NEWS;
        if (sorts && unseen === Infinity) unseen = NEWS;
        hurry();
      });
    }
  };

  // ---- the renderer ----
  const getContext = HTMLCanvasElement.prototype.getContext;
  HTMLCanvasElement.prototype.getContext = function (kind, ...options) {
    const context = getContext.call(this, kind, ...options);
    if (kind === "webgl2") say(context);
    if (context && kind === "webgl2" && this.isConnected) gl = context;
    return context;
  };
  const say = (context) => { // to the page around this view: on a GPU, in software, or not at all
    if (known) return;
    known = true;
    const info = context?.getExtension("WEBGL_debug_renderer_info");
    const renderer = info ? String(context.getParameter(info.UNMASKED_RENDERER_WEBGL)) : "";
    const drawing = !context ? "off" : SOFTWARE.test(renderer) ? "software" : "gpu";
    parent.postMessage({ drawing }, location.origin);
  };
  const busy = () => { // is the last picture still being drawn?
    if (!fence) return false;
    const now = performance.now();
    if (gl.getSyncParameter(fence, gl.SYNC_STATUS) !== gl.SIGNALED && now - drawn < STILL && !gl.isContextLost()) return true;
    gl.deleteSync(fence);
    fence = null;
    [took, before] = [now - drawn, took];
    return false;
  };

  // ---- the client's animation frames ----
  const waiting = new Map(); // number -> callback
  let last = 0, timer = 0, frame = 0, drawing = false;
  const rest = () => {
    const now = performance.now();
    if (busy()) return LOOK;
    if (now - touched < AWAKE || count < FIRST || (owed > 0 && eager > 0)) return 0;
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
    if (owed > 0) eager -= 1;
    owed -= 1;
    const callbacks = [...waiting.values()];
    waiting.clear();
    for (const callback of callbacks) try { callback(now); } catch (error) { reportError(error); }
    if (gl) {
      fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
      gl.flush();
    }
    root.dataset.drawn = ++count;
    if (unseen > 0 && --unseen === 0) parent.postMessage({ live: true }, location.origin);
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
