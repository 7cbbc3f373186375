// The page's own controls. Each is a gr.HTML component whose body was built in Python (sdlab/ui/form.py); here it
// gets its behaviour: what the person does becomes `props.value` and an "input" event, and what the server says
// becomes the control's state again.

const SLIDER_STEPS = 1000;
const SEND_EVERY = 120; // ms while a slider is dragged

function sdlKnob(element, props, trigger, watch) {
  const field = element.querySelector("[data-field]");
  const slider = element.querySelector("input[type=range]");
  const { kind, lo, hi, log, step } = props;
  const whole = kind === "int";
  // a logarithmic scale cannot reach 0: its left end then stands for 0, and the scale proper begins a little above
  const floor = !log || lo > 0 ? lo : whole ? 1 : hi / 1e6;

  const toPosition = (v) =>
    log
      ? v <= floor ? (v < floor ? 0 : 1) : SLIDER_STEPS * Math.log(v / floor) / Math.log(hi / floor)
      : SLIDER_STEPS * (v - lo) / (hi - lo);
  const toValue = (p) => {
    if (p <= 0) return lo;
    const v = log ? floor * (hi / floor) ** (p / SLIDER_STEPS) : lo + (hi - lo) * p / SLIDER_STEPS;
    const rounded = log ? Number(v.toPrecision(2)) : Number((Math.round(v / step) * step).toPrecision(6));
    return Math.min(Math.max(whole ? Math.round(rounded) : rounded, lo), hi);
  };
  const paint = () => {
    const share = Math.min(Math.max((slider.value - slider.min) / (slider.max - slider.min), 0), 1);
    slider.style.setProperty("--share", `${100 * share}%`);
  };
  const show = (v) => {
    if (kind === "bool") field.checked = v;
    else field.value = v;
    if (slider) { slider.value = toPosition(v); paint(); }
  };

  let waiting = null;
  const send = (v) => {
    clearTimeout(waiting);
    waiting = null;
    if (v === props.value) return;
    props.value = v;
    trigger("input");
  };
  const sendSoon = (v) => {
    if (waiting === null) waiting = setTimeout(() => { waiting = null; send(toValue(Number(slider.value))); }, SEND_EVERY);
  };

  field.addEventListener("change", () => {
    if (kind === "bool") return send(field.checked);
    if (kind === "text" || kind === "choice") return send(field.value);
    const v = Number(field.value);
    if (field.value.trim() === "" || !Number.isFinite(v)) return show(props.value);
    if (slider) { slider.value = toPosition(v); paint(); }
    send(v);
  });
  if (slider) {
    slider.addEventListener("input", () => { field.value = toValue(Number(slider.value)); paint(); sendSoon(); });
    slider.addEventListener("change", () => send(toValue(Number(slider.value))));
  }
  watch("value", () => show(props.value));
  show(props.value);
}

// ---- light and dark: the system's choice until somebody presses the button -------------------------------

const THEME_KEY = "sdlab-theme";

function sdlIsDark() {
  return document.body.classList.contains("dark");
}

function sdlRestoreTheme() {
  let kept = null;
  try { kept = localStorage.getItem(THEME_KEY); } catch { /* storage may be forbidden in a frame */ }
  if (kept !== null) document.body.classList.toggle("dark", kept === "dark");
  return sdlIsDark();
}

function sdlTheme(element, props, trigger) {
  element.querySelector("button").addEventListener("click", () => {
    const dark = document.body.classList.toggle("dark");
    try { localStorage.setItem(THEME_KEY, dark ? "dark" : "light"); } catch { /* as above */ }
    props.value = dark;
    trigger("input");
  });
}
