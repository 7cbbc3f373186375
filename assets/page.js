// The form is one gr.HTML component whose body is built in Python (sdlab/ui/form.py). What a person does becomes an
// event with the knob's path and value; what the server says comes as `props.value` and is shown. The body itself is
// never rendered anew, so that open groups stay open and a slider in the hand stays there.

const SLIDER_STEPS = 1000;
const SEND_EVERY = 120; // ms while a slider is dragged

function sdlForm(element, props, trigger, watch) {
  let sent = 0; // numbers the changes, because requests may overtake each other
  const send = (path, value) => trigger("input", { knob: path, value, number: ++sent }); // "path" would mean a file
  const controls = [...element.querySelectorAll("[data-path]")].map((node) => sdlKnob(node, send));
  const sections = [...element.querySelectorAll("[data-owner]")];
  const picker = element.querySelector("[data-preset]");
  const about = element.querySelector("[data-about-preset]");

  const showAbout = () => { about.textContent = picker.selectedOptions[0]?.dataset.about ?? ""; };
  picker.addEventListener("change", () => { showAbout(); trigger("select", { preset: picker.value }); });

  const show = () => {
    const { values, owners, preset } = props.value;
    for (const section of sections) section.hidden = !owners.includes(section.dataset.owner);
    for (const c of controls) if (c.path in values && !c.node.closest("[data-owner][hidden]")) c.show(values[c.path]);
    picker.value = preset ?? "";
    showAbout();
  };
  watch("value", show);
  show();
}

function sdlKnob(node, send) {
  const { path, kind } = node.dataset;
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
    if (field.value.trim() === "" || !Number.isFinite(v)) return show(shown);
    place(v);
    change(v);
  });
  slider?.addEventListener("input", () => {
    const v = toValue(Number(slider.value));
    field.value = written(v);
    slider.style.setProperty("--share", `${(100 * slider.value) / SLIDER_STEPS}%`);
    waiting ??= setTimeout(() => change(toValue(Number(slider.value))), SEND_EVERY);
  });
  slider?.addEventListener("change", () => change(toValue(Number(slider.value))));
  node.querySelector("[data-now]")?.addEventListener("click", () => {
    const step = Number(document.querySelector(".status[data-step]")?.dataset.step);
    if (!Number.isFinite(step)) return; // there is no run
    typing = false;
    field.value = step;
    change(step);
  });
  return { path, node, show };
}

// Small numbers as people write learning rates: 1e-4.
function written(value) {
  return typeof value === "number" && value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential() : value;
}

// ---- light and dark: the system's choice until somebody presses the button -------------------------------

const THEME_KEY = "sdlab-theme";

function sdlRestoreTheme() {
  let kept = null;
  try { kept = localStorage.getItem(THEME_KEY); } catch { /* storage may be forbidden in a frame */ }
  if (kept !== null) document.body.classList.toggle("dark", kept === "dark");
  return document.body.classList.contains("dark");
}

function sdlTheme(element, props, trigger) {
  element.querySelector("button").addEventListener("click", () => {
    const dark = document.body.classList.toggle("dark");
    try { localStorage.setItem(THEME_KEY, dark ? "dark" : "light"); } catch { /* as above */ }
    props.value = dark;
    trigger("input");
  });
}
