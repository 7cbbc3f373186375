// What the server says of a run comes as panels, a value for each part of the page by its name (sdlNews); a part shows
// its own. What a person does becomes an event. The parts are gr.HTML components whose bodies are built in Python and
// never rendered anew, so that open groups stay open and a slider in the hand stays there.

const SLIDER_STEPS = 1000;
const SEND_EVERY = 120; // ms while a slider is dragged

// ---- what is new -------------------------------------------------------------------------------------------------

const ASK_EVERY = 500, GIVE_UP = 30000; // ms
const sdlParts = new Map(); // name -> what shows a value of it
let sdlShown = {}; // the desk that is shown: its token, and what this page is called
const sdlSaid = new Map(); // name -> [number, value] that were said last: answers may overtake each other

function sdlPart(name, show) {
  sdlParts.set(name, show);
  if (sdlSaid.has(name)) show(sdlSaid.get(name)[1]);
}

function sdlPanel(element, name) {
  const node = element.querySelector("[data-panel]");
  sdlPart(name, (html) => { node.innerHTML = html; });
}

function sdlSay({ number, panels }) {
  for (const [name, value] of Object.entries(panels ?? {})) {
    if (sdlSaid.has(name) && sdlSaid.get(name)[0] > number) continue;
    sdlSaid.set(name, [number, value]);
    sdlParts.get(name)?.(value);
  }
}

function sdlNews(props, trigger, watch) {
  const heard = () => {
    if (!props.value?.number) return;
    sdlShown = props.value;
    sdlSay(props.value);
  };
  const ask = async () => {
    const { token, page } = sdlShown;
    const next = performance.now() + ASK_EVERY;
    const how = { cache: "no-store", signal: AbortSignal.timeout(GIVE_UP) };
    try {
      const answer = token && await fetch(`news/${token}?page=${encodeURIComponent(page)}`, how);
      const news = answer?.ok && await answer.json();
      if (news && token === sdlShown.token) {
        sdlSay(news);
        if (news.refresh) trigger("input");
      }
    } catch { /* the network fails now and then: the next one may come through */ }
    setTimeout(ask, Math.max(next - performance.now(), ASK_EVERY / 5));
  };
  watch("value", heard);
  heard();
  ask();
}

// ---- the form ----------------------------------------------------------------------------------------------------

function sdlForm(element, props, trigger) {
  let sent = 0; // numbers the changes, because requests may overtake each other
  const send = (path, value) => trigger("input", { knob: path, value, number: ++sent }); // "path" would mean a file
  const controls = [...element.querySelectorAll("[data-path]")].map((node) => sdlKnob(node, send));
  const sections = [...element.querySelectorAll("[data-owner]")];
  const picker = element.querySelector("[data-preset]");
  const about = element.querySelector("[data-about-preset]");

  const showAbout = () => { about.textContent = picker.selectedOptions[0]?.dataset.about ?? ""; };
  picker.addEventListener("change", () => { showAbout(); trigger("select", { preset: picker.value }); });

  sdlFile(element.querySelector("[data-open]"), element.querySelector("[data-settings]"), async (file) => {
    // a little more than is allowed is sent, so that the server says why it is not taken
    trigger("select", { settings: await file.slice(0, 500000).text(), name: file.name });
  });

  const show = ({ values, owners, preset }) => {
    for (const section of sections) section.hidden = !owners.includes(section.dataset.owner);
    for (const c of controls) if (c.path in values && !c.node.closest("[data-owner][hidden]")) c.show(values[c.path]);
    picker.value = preset ?? "";
    showAbout();
  };
  show(props.value);
  sdlPart("form", show);
}

// A button that lets a file be chosen, with its hidden input.
function sdlFile(button, input, take) {
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    const [file] = input.files;
    input.value = ""; // the same file may be chosen again
    if (file) take(file);
  });
}

// A file of one's own for the knob at `path`, which the server takes when it has read it.
function sdlBring(node, path) {
  const [button, input, said] = ["button", "input", "output"].map((name) => node.querySelector(name));
  const say = (text) => { said.textContent = text; };
  const over = (text) => { button.disabled = false; say(text); };
  sdlFile(button, input, (file) => {
    const most = Number(node.dataset.bring);
    const bytes = (n) => n.toLocaleString("en");
    if (file.size > most) return say(`${file.name} has ${bytes(file.size)} bytes; allowed are ${bytes(most)}`);
    button.disabled = true;
    const request = new XMLHttpRequest(); // fetch does not say how far it is
    request.upload.onprogress = ({ loaded, total }) => say(`${file.name}: ${Math.round((100 * loaded) / total)} %`);
    request.upload.onload = () => say(`${file.name} is being read`);
    request.onload = () => over(request.status === 204 ? `${file.name} was taken` : request.responseText);
    request.onerror = () => over("The connection failed: try again");
    request.open("POST", `uploads/${sdlShown.token}/${path}?name=${encodeURIComponent(file.name)}`);
    request.send(file);
  });
}

// Of buttons of which one is chosen, the Tab key reaches that one, and arrow keys, Home and End choose among those that
// can be seen. The listener has to stand after the one for clicks.
function sdlArrows(node, chosen) {
  const all = () => [...node.querySelectorAll("[data-value], [data-tab]")].filter((b) => b.checkVisibility());
  const reach = () => {
    const buttons = all();
    const one = buttons.find((b) => b.getAttribute(chosen) === "true") ?? buttons[0];
    for (const button of buttons) button.tabIndex = button === one ? 0 : -1;
  };
  node.addEventListener("keydown", (event) => {
    const buttons = all();
    const at = buttons.indexOf(event.target);
    const to = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const button = buttons.at(to % buttons.length);
    button.focus();
    button.click();
    reach();
  });
  node.addEventListener("click", reach);
  node.addEventListener("toggle", reach, true); // a fold inside, whose own event does not bubble
  return reach;
}

// The loss: a button for each; the fold of the others says which of them is in force.
function sdlToggle(node, send) {
  const buttons = [...node.querySelectorAll("[data-value]")];
  const others = node.querySelector("details");
  const title = others?.querySelector("summary").textContent;
  let shown;
  const show = (value) => {
    shown = value;
    for (const button of buttons) button.setAttribute("aria-checked", button.dataset.value === value);
    const hidden = others?.querySelector('[aria-checked="true"]');
    if (others) {
      others.querySelector("summary").textContent = hidden ? `${title}: ${hidden.textContent}` : title;
      others.classList.toggle("chosen", Boolean(hidden));
    }
    reach();
  };
  node.addEventListener("click", (event) => {
    const button = event.target.closest("[data-value]");
    if (!button || button.dataset.value === shown) return;
    show(button.dataset.value);
    send("active", shown);
  });
  const reach = sdlArrows(node, "aria-checked");
  return { path: "active", node, show };
}

function sdlKnob(node, send) {
  const { path, kind } = node.dataset;
  if (kind === "buttons") return sdlToggle(node, send);
  const [lo, hi, step] = [node.dataset.lo, node.dataset.hi, node.dataset.step].map(Number);
  const log = "log" in node.dataset;
  const whole = kind === "int";
  const field = node.querySelector("[data-field]");
  const slider = node.querySelector("input[type=range]");
  // a logarithmic scale cannot reach 0: its left end then stands for 0, and the scale proper begins a little above
  const floor = !log || lo > 0 ? lo : whole ? 1 : hi / 1e6;
  let shown; // the value that the server and this control agree on, as far as is known here
  let typing = false; // something is typed that was not sent yet
  let waiting; // the timer that sends the slider's position

  const toPosition = (v) => {
    if (!log) return (SLIDER_STEPS * (v - lo)) / (hi - lo);
    if (v <= floor) return v < floor ? 0 : 1;
    return (SLIDER_STEPS * Math.log(v / floor)) / Math.log(hi / floor);
  };
  const toValue = (position) => {
    if (position <= 0) return lo;
    if (position >= SLIDER_STEPS) return hi;
    const share = position / SLIDER_STEPS;
    const v = log
      ? Number((floor * (hi / floor) ** share).toPrecision(2))
      : Number((Math.round((lo + (hi - lo) * share) / step) * step).toPrecision(6));
    return Math.min(Math.max(whole ? Math.round(v) : v, lo), hi);
  };
  const place = (v) => {
    if (!slider) return;
    slider.value = toPosition(v);
    slider.style.setProperty("--share", `${(100 * slider.value) / SLIDER_STEPS}%`);
  };
  const show = (v) => {
    shown = v;
    if (typing || waiting !== undefined) return; // what is being done here comes next, and wins
    if (kind === "bool") field.checked = v;
    else field.value = written(v);
    place(v);
  };
  const change = (v) => {
    clearTimeout(waiting);
    waiting = undefined;
    if (v === shown) return;
    shown = v;
    send(path, v);
  };

  field.addEventListener("input", () => { typing = true; });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || field.tagName !== "TEXTAREA") return;
    event.preventDefault(); // a text is one line, however many it takes to show
    field.blur();
  });
  field.addEventListener("change", () => {
    typing = false;
    if (kind === "bool") return change(field.checked);
    if (kind === "text" || kind === "choice") return change(field.value);
    const v = Number(field.value);
    if (field.value.trim() === "") return show(shown);
    if (!Number.isFinite(v)) { // the server says what is allowed
      send(path, field.value);
      return show(shown);
    }
    place(v);
    change(v);
  });
  field.addEventListener("blur", () => { // typed and taken back, of which "change" says nothing
    if (!typing) return;
    typing = false;
    show(shown);
  });
  slider?.addEventListener("input", () => {
    const v = toValue(Number(slider.value));
    field.value = written(v);
    slider.style.setProperty("--share", `${(100 * slider.value) / SLIDER_STEPS}%`);
    waiting ??= setTimeout(() => change(toValue(Number(slider.value))), SEND_EVERY);
  });
  slider?.addEventListener("change", () => change(toValue(Number(slider.value))));
  const bring = node.querySelector("[data-bring]");
  if (bring) sdlBring(bring, path);
  node.querySelector("[data-now]")?.addEventListener("click", () => {
    const step = Number(document.querySelector(".status[data-step]")?.dataset.step);
    if (!Number.isFinite(step)) return; // there is no run
    typing = false;
    field.value = step;
    change(step);
  });
  if (node.dataset.of) { // a symbol of the formula: hovering over the one lights up the other
    const light = (on) => {
      const card = node.closest("[data-owner]");
      for (const symbol of card.querySelectorAll("[data-symbol]"))
        if (symbol.dataset.symbol === node.dataset.of) symbol.classList.toggle("lit", on);
    };
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false], ["focusin", true], ["focusout", false]])
      node.addEventListener(event, () => light(on));
    const plain = show;
    const shownToo = (v) => { plain(v); sdlValue(node.closest("[data-owner]"), node.dataset.of, written(field.value)); };
    field.addEventListener("input", () => sdlValue(node.closest("[data-owner]"), node.dataset.of, field.value));
    slider?.addEventListener("input", () => sdlValue(node.closest("[data-owner]"), node.dataset.of, field.value));
    return { path, node, show: shownToo };
  }
  return { path, node, show };
}

// The value of a symbol, below it in the formula.
function sdlValue(card, symbol, value) {
  for (const node of card?.querySelectorAll(`.formula [data-symbol]`) ?? [])
    if (node.dataset.symbol === symbol) value === undefined ? delete node.dataset.now : (node.dataset.now = value);
}

function sdlLive() {
  let said = {};
  sdlPart("live", ({ loss, formula, values: now }) => {
    const card = document.querySelector(`#form section[data-owner="losses.${loss}"]`); // which the form may show only now
    card?.querySelectorAll(".formula").forEach((node, n) => { node.hidden = n !== formula; });
    for (const symbol of Object.keys(said))
      if (!(symbol in now)) sdlValue(document.getElementById("form"), symbol, undefined); // there is no step any more
    for (const [symbol, value] of Object.entries(now)) sdlValue(card, symbol, value);
    said = now;
  });
}

// Small numbers as people write learning rates: 1e-4.
function written(value) {
  return typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : value;
}

// ---- the stage: one to four lanes, each with a view in a frame of its own ----------------------------------------

function sdlStage(element, trigger) {
  const stage = element.querySelector(".stage");
  const lanes = new Map(); // by seat
  const say = (what, lane) => trigger("input", { do: what, lane });
  let desk; // whose runs are shown

  const resting = new Set(); // buttons that a second press would make another lane with, until the first lane is there
  const rest = (button) => {
    button.disabled = true;
    resting.add(button);
    setTimeout(() => wake(button), 5000); // it was refused
  };
  const wake = (button) => { button.disabled = false; resting.delete(button); };

  const add = (lane) => {
    const node = document.createElement("figure");
    node.className = "lane";
    node.innerHTML =
      '<figcaption><button type="button" class="name" data-do="focus"><i class="chip"></i><b></b><span></span></button>' +
      '<button type="button" data-do="keep" title="Keep this lane, close the others">keep</button>' +
      '<button type="button" data-do="close" title="Close this lane" aria-label="Close this lane">&times;</button></figcaption>' +
      '<div class="tools"><button type="button" data-do="branch" title="Another lane that goes on from this very step">' +
      'Branch here</button><button type="button" data-do="front">Front view</button></div>';
    const frame = document.createElement("iframe");
    frame.addEventListener("load", () => {
      sdlTell(frame);
      try { frame.contentWindow.addEventListener("keydown", sdlKeys); } catch { /* a frame that is not ours */ }
    });
    node.insertBefore(frame, node.querySelector(".tools"));
    node.addEventListener("click", (event) => {
      const button = event.target.closest("[data-do]");
      if (!button || (button.dataset.do === "focus" && node.classList.contains("focus"))) return;
      if (button.dataset.do === "branch") rest(button);
      say(button.dataset.do, lane.token);
    });
    stage.append(node);
    return node;
  };

  sdlPart("stage", (wanted) => {
    for (const [token, node] of lanes) {
      if (wanted.some((lane) => lane.token === token)) continue;
      node.remove();
      lanes.delete(token);
    }
    for (const lane of wanted) {
      if (!lanes.has(lane.token)) {
        lanes.set(lane.token, add(lane));
        resting.forEach(wake);
      }
      const node = lanes.get(lane.token);
      const frame = node.querySelector("iframe");
      if (frame.getAttribute("src") !== lane.address) frame.setAttribute("src", lane.address);
      node.style.order = lane.tone;
      node.classList.toggle("focus", lane.focus);
      node.querySelector(".chip").className = `chip tone-${lane.tone}`;
      node.querySelector(".chip").textContent = lane.letter;
      node.querySelector(".name b").textContent = lane.loss;
      node.querySelector(".name span").textContent = `step ${lane.step}${lane.phase === "running" ? "" : `, ${lane.phase}`}`;
      frame.title = `view of the scene, lane ${lane.letter}, ${lane.loss}`;
      node.dataset.flat = lane.address.startsWith("flat/");
    }
    stage.dataset.lanes = wanted.length;
    if (!wanted.length || wanted[0].desk === desk) return;
    if (desk) { // a new one on an old page: it does not know yet what is looked at here
      trigger("input", { do: "tab", tab: document.getElementById("readings").dataset.tab ?? "lens" });
      document.querySelector("#scrub [data-live]:not(:disabled)")?.click();
    }
    desk = wanted[0].desk;
    sdlKeep("sdlab-desk", desk);
  });
}

// The views that are pages of ours follow the theme; viser is told by the server.
function sdlTell(frame) {
  frame.contentWindow?.postMessage({ dark: document.body.classList.contains("dark") }, location.origin);
}

function sdlTellAll() {
  document.querySelectorAll(".lane iframe").forEach(sdlTell);
}

// ---- the timeline ------------------------------------------------------------------------------------------------

function sdlTimeline(element, trigger) {
  const track = element.querySelector(".track");
  const ticks = element.querySelector(".ticks");
  const replay = element.querySelector("[data-replay]");
  let drawn = "";
  let now = {};

  const show = (value) => {
    now = value;
    const { lane, step = 0, planned = 1, kept = [], entries = [], shots = [], replay: at = null } = now;
    const end = Math.max(planned, step, kept.at(-1) ?? 0, 1);
    const place = (s) => `${(100 * Math.min(s, end)) / end}%`;
    element.querySelector(".done").style.width = place(at ?? step);
    element.querySelector(".now").style.left = place(at ?? step);
    replay.disabled = shots.length < 2;
    replay.textContent = at === null ? "\u25b7" : "\u25a0";
    replay.title = at === null ? "Replay how it grew" : `Replaying, step ${at}: back to now`;
    const key = JSON.stringify([lane, end, kept, entries]);
    if (key === drawn) return;
    drawn = key;
    const marks = kept.map((s) => ["kept", s, `Jump back to step ${s}`]);
    for (const e of entries) if (e.kind !== "start") marks.push([`event ${e.kind}`, e.step, `Step ${e.step}: ${e.text}`]);
    ticks.replaceChildren(...marks.map(([name, s, text]) => {
      const node = document.createElement(name === "kept" ? "button" : "i");
      node.className = name;
      node.style.left = place(s);
      node.title = text;
      if (name === "kept") {
        node.type = "button";
        node.setAttribute("aria-label", text);
        node.addEventListener("click", () => trigger("input", { do: "goto", lane: now.lane, step: s }));
      }
      return node;
    }));
  };
  replay.addEventListener("click", () => {
    const { lane, replay: at } = now;
    trigger("input", { do: at === null || at === undefined ? "replay" : "live", lane });
  });
  track.title = "Dots are moments that can be gone back to, strokes are changes";
  show(now);
  sdlPart("timeline", show);
}

// ---- below the scene: tabs, the lens's slider, results -----------------------------------------------------------

function sdlTabs(element, trigger) {
  const turn = (tab) => {
    document.getElementById("readings").dataset.tab = tab;
    for (const button of element.querySelectorAll("[data-tab]"))
      button.setAttribute("aria-selected", button.dataset.tab === tab);
  };
  element.addEventListener("click", (event) => {
    const tab = event.target.closest("[data-tab]")?.dataset.tab;
    if (!tab) return;
    turn(tab);
    trigger("input", { do: "tab", tab });
  });
  sdlArrows(element, "aria-selected")();
  document.addEventListener("click", (event) => { // the preview may not be there yet
    const row = event.target.closest("#preview [data-row]")?.dataset.row;
    if (row !== undefined) trigger("input", { do: "view", row: Number(row) });
  });
}

function sdlScrub(element, trigger) {
  const slider = element.querySelector("input");
  const said = element.querySelector("output");
  const live = element.querySelector("[data-live]");
  let waiting;
  const show = (t) => {
    said.textContent = t === null ? "as drawn in each step" : `t = ${t}`;
    live.disabled = t === null;
    if (t !== null) slider.value = t;
  };
  const ask = (t) => { clearTimeout(waiting); waiting = undefined; trigger("input", { do: "probe", t }); };
  slider.addEventListener("input", () => {
    show(Number(slider.value));
    waiting ??= setTimeout(() => ask(Number(slider.value)), SEND_EVERY);
  });
  live.addEventListener("click", () => { show(null); ask(null); });
  show(null);
}

function sdlResults(element, trigger) {
  const kinds = element.querySelector(".kinds");
  const shelf = element.querySelector(".shelf");
  let offered = "";
  sdlPart("results", ({ lane, offers = [], items = [] }) => {
    const key = JSON.stringify([lane, offers]);
    if (key !== offered) {
      offered = key;
      kinds.replaceChildren(...offers.map(({ kind, title, about }) => {
        const button = document.createElement("button");
        button.type = "button";
        button.title = about;
        button.dataset.kind = kind;
        button.innerHTML = "<b></b><span></span>";
        button.firstChild.textContent = title;
        button.lastChild.textContent = about;
        button.addEventListener("click", () => trigger("input", { do: "make", lane, kind }));
        return button;
      }));
    }
    shelf.replaceChildren(...items.map((item) => {
      const row = document.createElement("li");
      row.className = item.state;
      const name = document.createElement(item.address ? "a" : "span");
      name.className = "file";
      name.textContent = item.name;
      if (item.address) { name.href = item.address; name.download = item.name; }
      const said = document.createElement("span");
      said.className = "said";
      said.textContent = item.said;
      const bar = document.createElement("progress");
      bar.max = 1;
      bar.value = item.share;
      row.append(name, bar, said);
      if (item.state === "waiting" || item.state === "working") {
        const cancel = document.createElement("button");
        cancel.type = "button";
        cancel.textContent = "cancel";
        cancel.addEventListener("click", () => trigger("input", { do: "cancel", lane: item.lane, id: item.id }));
        row.append(cancel);
      }
      return row;
    }));
  });
}

// ---- keys: space pauses and goes on, a full stop is one step, v turns the lens to the next view ------------------------------------------------------

function sdlKeys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest?.("input, textarea, select, button, summary, a, [contenteditable]")) return;
  const press = (id) => {
    const button = document.getElementById(id);
    if (!button || button.disabled) return false;
    button.click();
    return true;
  };
  if (event.key === " " && (press("pause") || press("start"))) event.preventDefault();
  if (event.key === "." && press("step")) event.preventDefault();
  if (event.key === "v") {
    const views = [...document.querySelectorAll("#preview [data-row]")];
    views[(views.findIndex((view) => view.classList.contains("chosen")) + 1) % views.length]?.click();
  }
}
document.addEventListener("keydown", sdlKeys);
// A button that was clicked with a pointer gives the keys back: the space bar would press it again.
document.addEventListener("click", (event) => { if (event.detail > 0) event.target.closest?.("button")?.blur(); });

// ---- what a tab remembers: its desk, so that a page loaded anew finds its runs; and how it is to look ------------

function sdlKeep(key, value) {
  try { sessionStorage.setItem(key, value); } catch { /* storage may be forbidden in a frame */ }
}

function sdlRestore() {
  let desk = "";
  try { desk = sessionStorage.getItem("sdlab-desk") ?? ""; } catch { /* as above */ }
  return [sdlRestoreTheme(), desk];
}

// ---- light and dark: the system's choice until somebody presses the button -------------------------------

const THEME_KEY = "sdlab-theme";

let sdlLook; // the props of the title, whose value says whether the page is dark: new views are to be so, too

function sdlRestoreTheme() {
  let kept = null;
  try { kept = localStorage.getItem(THEME_KEY); } catch { /* storage may be forbidden in a frame */ }
  if (kept !== null) document.body.classList.toggle("dark", kept === "dark");
  const dark = document.body.classList.contains("dark");
  if (sdlLook) sdlLook.value = dark;
  return dark;
}

const LARGE_KEY = "sdlab-large";

function sdlTheme(element, props, trigger) {
  sdlLook = props;
  const root = document.documentElement;
  try { root.classList.toggle("large", localStorage.getItem(LARGE_KEY) === "yes"); } catch { /* as above */ }
  element.querySelector("[data-large]").addEventListener("click", () => {
    const large = root.classList.toggle("large");
    try { localStorage.setItem(LARGE_KEY, large ? "yes" : "no"); } catch { /* as above */ }
  });
  element.querySelector("[data-theme]").addEventListener("click", () => {
    const dark = document.body.classList.toggle("dark");
    sdlTellAll();
    try { localStorage.setItem(THEME_KEY, dark ? "dark" : "light"); } catch { /* as above */ }
    props.value = dark;
    trigger("input");
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTimeout(() => { // after Gradio's own
    sdlRestoreTheme();
    sdlTellAll();
    trigger("input");
  }));
}
