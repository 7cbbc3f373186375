// @ts-check
/* Score distillation in the plane, without a server: exact scores of Gaussians, and the losses that train nothing.

   A port of sdlab.priors.mixture, sdlab.losses, sdlab.inversion and one step of sdlab.step; tests/test_site_distill.py
   compares them. A batch is an array of points [x, y]; timesteps, alpha and sigma are arrays of one number a point. */

/** @typedef {[number, number]} Point */
/** @typedef {number | ArrayLike<number>} Factor a number for all points, or one for each */
/** @typedef {{ z0: Point[], zt: Point[], t: number[], alpha: number[], sigma: number[], noise: Point[], ref?: Point[] }} Noised */
/** @typedef {Record<string, any>} Knobs */

export const LEVELS = 1000; // timesteps

// ---- batches ----

/** @param {Factor} factor @param {number} i */
const of = (factor, i) => (typeof factor === "number" ? factor : factor[i]);

/** Sum batches, each with a factor. @param {[Factor, Point[]][]} parts @returns {Point[]} */
export function sum(...parts) {
  return parts[0][1].map((_, i) => {
    let x = 0, y = 0;
    for (const [factor, points] of parts) {
      const f = of(factor, i);
      x += f * points[i][0];
      y += f * points[i][1];
    }
    return [x, y];
  });
}

/** @param {Point[]} u @param {Point[]} c @param {number} s */
const cfg = (u, c, s) => sum([1, u], [s, sum([1, c], [-1, u])]);

/** Round halves to even, as Python and torch do. @param {number} x */
export function roundEven(x) {
  const low = Math.floor(x), rest = x - low;
  return rest !== 0.5 ? Math.round(x) : low % 2 === 0 ? low : low + 1;
}

/** @param {number[]} scores @returns {number[]} */
function softmax(scores) {
  const most = Math.max(...scores), all = scores.map((s) => Math.exp(s - most));
  const total = all.reduce((a, b) => a + b, 0);
  return all.map((a) => a / total);
}

// ---- the prior ----

/** Return alpha_t^2 at every timestep. @param {string} schedule "linear" or "scaled_linear" */
export function alphasCumprod(schedule) {
  const found = new Float64Array(LEVELS);
  const [first, last] = schedule === "linear" ? [1e-4, 0.02] : [0.00085 ** 0.5, 0.012 ** 0.5];
  let product = 1;
  for (let t = 0; t < LEVELS; t++) {
    const b = first + ((last - first) * t) / (LEVELS - 1);
    product *= 1 - (schedule === "linear" ? b : b * b);
    found[t] = product;
  }
  return found;
}

/** Gaussians of one width at named places. A text stands for the one that it names, or for all of them. */
export class Plane {
  /** @param {Record<string, number[]>} places name -> x, y, weight @param {number} std @param {string} schedule */
  constructor(places, std, schedule) {
    this.places = places;
    this.std = std;
    this.squared = alphasCumprod(schedule);
  }

  /** Return the name of the place in a text, or ""; "north east" is not "north". @param {string} text */
  placeIn(text) {
    const letters = text.toLowerCase().replace(/[^\p{L}]/gu, "");
    const found = Object.keys(this.places).filter((name) => letters.includes(name.replaceAll(" ", "")));
    return found.reduce((best, name) => (name.length > best.length ? name : best), "");
  }

  /** Return the centres and the weights, of sum 1, of what a text stands for. @param {string} text */
  mixture(text) {
    const name = this.placeIn(text);
    const all = name ? [[this.places[name][0], this.places[name][1], 1]] : Object.values(this.places);
    const total = all.reduce((s, p) => s + p[2], 0);
    return all.map(([x, y, weight]) => ({ x, y, weight: weight / total }));
  }

  /** @param {number[]} t */
  marginal(t) {
    return { alpha: t.map((n) => Math.sqrt(this.squared[n])), sigma: t.map((n) => Math.sqrt(1 - this.squared[n])) };
  }

  /** Return the exact noise prediction sigma sum_k r_k (z_t - alpha mu_k) / v.
   * @param {Point[]} z @param {number[]} t @param {string} text @returns {Point[]} */
  eps(z, t, text) {
    const mixture = this.mixture(text);
    return z.map(([x, y], i) => {
      const squared = this.squared[t[i]], alpha = Math.sqrt(squared), sigma = Math.sqrt(1 - squared);
      const v = squared * this.std ** 2 + sigma ** 2;
      const offsets = mixture.map((m) => [x - alpha * m.x, y - alpha * m.y]);
      const r = softmax(mixture.map((m, k) => Math.log(m.weight) - (offsets[k][0] ** 2 + offsets[k][1] ** 2) / (2 * v)));
      let ex = 0, ey = 0;
      for (let k = 0; k < r.length; k++) {
        ex += r[k] * offsets[k][0];
        ey += r[k] * offsets[k][1];
      }
      return [(sigma * ex) / v, (sigma * ey) / v];
    });
  }

  /** Return the density at a point, up to a factor. @param {number} x @param {number} y @param {string} text */
  density(x, y, text) {
    const v = this.std ** 2;
    return this.mixture(text).reduce(
      (s, m) => s + m.weight * Math.exp(-((x - m.x) ** 2 + (y - m.y) ** 2) / (2 * v)), 0);
  }
}

/** A prior bound to the texts of one step. */
export class Bound {
  /** @param {Plane} plane @param {Record<string, string>} texts by role @param {number} progress
   *  @param {(stream: string, n: number) => Point[]} randn */
  constructor(plane, texts, progress, randn) {
    this.plane = plane;
    this.texts = texts;
    this.progress = progress;
    this.randn = randn;
    this.evaluations = 0; // for each point
  }

  /** @param {Point[]} z @param {number[]} t @param {string[]} roles */
  eps(z, t, ...roles) {
    this.evaluations += roles.length;
    return roles.map((role) => this.plane.eps(z, t, this.texts[role]));
  }

  /** @param {number[]} t */
  marginal(t) {
    return this.plane.marginal(t);
  }
}

/** @param {Bound} model @param {Point[]} z @param {number[]} t @param {number} scale */
function guide(model, z, t, scale) {
  const [pos, uncond] = model.eps(z, t, "pos", "uncond");
  return { hat: cfg(uncond, pos, scale), pos, uncond };
}

// ---- along the prior's flow ----

/** @param {Bound} model @param {Point[]} z @param {number[]} here @param {number[]} there @param {Point[]} eps
 *  @param {number} eta @param {string} stream */
function ddim(model, z, here, there, eps, eta = 0, stream = "") {
  const a = model.marginal(here), b = model.marginal(there);
  const x0 = z.map((p, i) => /** @type {Point} */ ([0, 1].map((d) => (p[d] - a.sigma[i] * eps[i][d]) / a.alpha[i])));
  if (eta === 0) return sum([b.alpha, x0], [b.sigma, eps]);
  const fresh = here.map((_, i) =>
    ((eta * a.sigma[i]) / b.sigma[i]) * Math.sqrt(Math.max(1 - (b.alpha[i] / a.alpha[i]) ** 2, 0)));
  const kept = fresh.map((f, i) => Math.sqrt(Math.max(b.sigma[i] ** 2 - f ** 2, 0)));
  return sum([b.alpha, x0], [kept, eps], [fresh, model.randn(stream, z.length)]);
}

/** @param {number[]} t @param {number} steps */
const levels = (t, steps) => Array.from({ length: steps + 1 }, (_, k) => t.map((n) => roundEven((n * k) / steps)));

/** @param {number} scale @param {string} role */
const flowRoles = (scale, role = "pos") => (scale === 0 ? ["uncond"] : scale === 1 ? [role] : [role, "uncond"]);

/** @param {Bound} model @param {Point[]} z @param {number[][]} grid @param {number} scale @param {string[]} roles */
function along(model, z, grid, scale, roles, eta = 0) {
  for (let k = 1; k < grid.length; k++) {
    const found = model.eps(z, grid[k - 1], ...roles);
    const eps = roles.length === 1 ? found[0] : cfg(found[1], found[0], scale);
    z = ddim(model, z, grid[k - 1], grid[k], eps, eta, `inversion ${k}`);
  }
  return z;
}

/** @param {Bound} model @param {Point[]} z0 @param {number[]} t @param {number} steps */
function invert(model, z0, t, steps, scale = 1, eta = 0, roles = flowRoles(scale)) {
  return along(model, z0, levels(t, steps), scale, roles, eta);
}

/** The noise that leads straight from `z0` to `zt`. @param {Noised} x @param {Point[]} zt @param {Point[]} z0 */
function straight(x, zt, z0) {
  return sum([x.sigma.map((s) => 1 / s), zt], [x.alpha.map((a, i) => -a / x.sigma[i]), z0]);
}

// ---- losses: residual [B] in units of eps, before w(t) ----

/** @type {Record<string, (x: Noised, model: Bound, k: Knobs, all?: Record<string, Knobs>) => Point[]>} */
export const LOSSES = {
  sds: (x, model, k) => sum([1, guide(model, x.zt, x.t, k.cfg).hat], [-1, x.noise]),

  vsd(x, model, k) {
    const { hat } = guide(model, x.zt, x.t, k.cfg);
    return sum([1, hat], [-1, exactPsi(x).own]);
  },

  esd(x, model, k) {
    const { hat } = guide(model, x.zt, x.t, k.cfg), { own, together } = exactPsi(x);
    return sum([1, hat], [-(1 - k.lam), own], [-k.lam, together]);
  },

  sbp(x, model, k) {
    if (stageOf(k, model.progress) === "sds") return sum([1, guide(model, x.zt, x.t, k.sds_cfg).hat], [-1, x.noise]);
    if (k.form === "full") {
      const up = flowRoles(k.source_cfg, "source"), down = flowRoles(k.target_cfg, "target");
      const zt = invert(model, x.z0, x.t, k.leg_steps, k.source_cfg, 0, up);
      const psi = along(model, zt, levels(x.t, k.leg_steps).reverse(), k.target_cfg, down);
      return sum([k.w, straight(x, zt, psi)], [-k.w, straight(x, zt, x.z0)]);
    }
    const [target, source] = model.eps(x.zt, x.t, "target", "source");
    if (k.form === "restoring") return sum([1, cfg(source, target, k.w)], [-1, x.noise]);
    return sum([k.w, target], [-k.w, source]);
  },

  jsd(x, model, k) {
    const zt = invert(model, x.z0, x.t, k.inversion_steps, k.inversion_cfg, k.inversion_eta);
    const { hat, pos } = guide(model, zt, x.t, k.cfg), paper = k.form === "paper";
    const x0 = sum([x.alpha.map((a) => 1 / a), zt], [x.alpha.map((a, i) => -x.sigma[i] / a), paper ? pos : hat]);
    const { hat: bar } = guide(model, sum([x.alpha, x0], [x.sigma, x.noise]), x.t, k.cfg);
    if (paper) {
      const w = x.alpha.map((a, i) => a / x.sigma[i]);
      return sum([w, hat], [w.map((one) => -one), bar]);
    }
    const kappa = straight(x, zt, x.z0), w = x.sigma.map((s, i) => s / x.alpha[i]);
    return sum([w.map((v) => v * (1 + k.k)), sum([1, hat], [-1, kappa])], [w.map((v) => v * k.k), sum([1, bar], [-1, x.noise])]);
  },

  nfsd(x, model, k) {
    const [pos, uncond, neg] = model.eps(x.zt, x.t, "pos", "uncond", "neg");
    return sum([1, uncond], [x.t.map((t) => (t < k.little_noise ? 0 : -1)), neg], [k.cfg, pos], [-k.cfg, uncond]);
  },

  csd(x, model, k) {
    const [pos, uncond, neg] = model.eps(x.zt, x.t, "pos", "uncond", "neg");
    const way = k.ramp > 0 ? Math.min(model.progress / k.ramp, 1) : 1;
    const now = (/** @type {string} */ name) => k[name] + way * (k[`${name}_end`] - k[name]);
    return sum([now("pos"), pos], [now("neg"), neg], [now("null"), uncond], [now("noise"), x.noise]);
  },

  dds: (x, model, k) => edit(x, model, k.cfg),

  pds(x, model, k) {
    return sum([1, edit(x, model, k.cfg)], [gamma(model, x.t, k.stride), sum([1, x.z0], [-1, x.ref ?? x.z0])]);
  },

  ism(x, model, k) {
    const part = k.first_part > 0 ? Math.min(model.progress / k.first_part, 1) : 1;
    const interval = roundEven(k.interval + part * (k.interval_end - k.interval));
    const s = x.t.map((t) => Math.max(t - interval, 0));
    const zs = invert(model, x.z0, s, k.inversion_steps, 1, 0, ["uncond"]);
    const [below] = model.eps(zs, s, "uncond");
    const [pos, neg] = model.eps(ddim(model, zs, s, x.t, below), x.t, "pos", "neg");
    return sum([1, cfg(neg, pos, k.cfg)], [-1, below]);
  },

  sdi(x, model, k) {
    const zt = invert(model, x.z0, x.t, k.inversion_steps, k.inversion_cfg, k.inversion_eta);
    const w = x.sigma.map((s, i) => s / x.alpha[i]);
    return sum([w, guide(model, zt, x.t, k.cfg).hat], [w.map((one) => -one), straight(x, zt, x.z0)]);
  },

  pfd(x, model, k) {
    const zt = invert(model, x.z0, x.t, k.inversion_steps, k.inversion_cfg, k.inversion_eta);
    return sum([1, x.z0], [-1, downTheFlow(model, zt, x.t, k)]);
  },

  reward(x, model, k, all = {}) {
    const inner = LOSSES[k.inner], own = all[k.inner];
    if (k.noises === 1) return inner(x, model, own);
    const found = Array.from({ length: k.noises }, (_, n) => candidate(n, x, model, k.inner, own));
    return x.z0.map((_, i) => {
      const weights = shares(found.map((one) => one.scores[i]), k);
      return /** @type {Point} */ ([0, 1].map((d) => found.reduce((s, one, n) => s + weights[n] * one.residual[i][d], 0)));
    });
  },
};

/** The stage of SBP. @param {Knobs} k @param {number} progress */
function stageOf(k, progress) {
  return k.stage === "two-stage" ? (progress < k.switch ? "sds" : "bridge") : k.stage;
}

/** Losses whose predictions a reward can read here. */
export const REWARDED = ["sds", "vsd", "esd"];

/** Psi in closed form: the score of the points as they are, each by itself and all together. @param {Noised} x */
function exactPsi(x) {
  /** @type {Point[]} */ const own = [], together = [];
  x.zt.forEach(([u, v], i) => {
    const a = x.alpha[i], s = x.sigma[i];
    const share = softmax(x.z0.map(([p, q]) => -((u - a * p) ** 2 + (v - a * q) ** 2) / (2 * s * s)));
    let ex = 0, ey = 0;
    x.z0.forEach(([p, q], n) => {
      ex += share[n] * (u - a * p);
      ey += share[n] * (v - a * q);
    });
    together.push([ex / s, ey / s]);
    own.push([(u - a * x.z0[i][0]) / s, (v - a * x.z0[i][1]) / s]);
  });
  return { own, together };
}

/** The difference between the guided predictions for the points and for the reference. @param {Noised} x
 *  @param {Bound} model @param {number} scale */
function edit(x, model, scale) {
  const ref = x.ref ?? x.z0, at = sum([x.alpha, ref], [x.sigma, x.noise]);
  const [pos, uncond] = model.eps(x.zt, x.t, "pos", "uncond"), [own, none] = model.eps(at, x.t, "ref", "uncond");
  return sum([1, cfg(uncond, pos, scale)], [-1, cfg(none, own, scale)]);
}

/** @param {Bound} model @param {number[]} t @param {number} stride */
function gamma(model, t, stride) {
  const late = t.map((n) => Math.max(n, 1)), here = model.marginal(late);
  const before = model.marginal(late.map((n) => n - 1)), there = model.marginal(late.map((n) => Math.max(n - stride, 0)));
  return late.map((_, i) => {
    const alpha = here.alpha[i], sigma = here.sigma[i], alphaS = there.alpha[i], sigmaS = there.sigma[i];
    const kept = (alpha / before.alpha[i]) ** 2;
    const c0 = (alphaS * (1 - kept)) / sigma ** 2, c1 = (Math.sqrt(kept) * sigmaS ** 2) / sigma ** 2;
    return ((alphaS - c0 - c1 * alpha) * alpha) / (c0 * sigma);
  });
}

/** @param {Bound} model @param {Point[]} zt @param {number[]} t @param {Knobs} k */
function downTheFlow(model, zt, t, k) {
  let z = zt;
  /** @type {Point[] | null} */ let before = null;
  /** @type {number[]} */ let hBefore = [];
  for (let n = k.reverse_steps; n > 0; n--) {
    const here = t.map((one) => roundEven((one * n) / k.reverse_steps));
    const there = t.map((one) => roundEven((one * (n - 1)) / k.reverse_steps));
    const a = model.marginal(here), { hat } = guide(model, z, here, k.cfg);
    const x0 = z.map((p, i) => /** @type {Point} */ ([0, 1].map((d) => (p[d] - a.sigma[i] * hat[i][d]) / a.alpha[i])));
    if (n === 1) return x0;
    const b = model.marginal(there);
    const h = here.map((_, i) => Math.log(b.alpha[i] / b.sigma[i] / (a.alpha[i] / a.sigma[i])));
    let aim = x0;
    if (k.solver === "dpm++" && before !== null) {
      const r = h.map((one, i) => one / (2 * Math.max(hBefore[i], 1e-6)));
      aim = sum([1, x0], [r, sum([1, x0], [-1, before])]);
    }
    z = sum([b.sigma.map((s, i) => s / a.sigma[i]), z], [b.alpha.map((one, i) => one * (1 - Math.exp(-h[i]))), aim]);
    before = x0;
    hBefore = h;
  }
  return z;
}

/** One noise of RewardSDS: the residual of the inner loss, and how much better the prior predicts with the prompt.
 * @param {number} n @param {Noised} x @param {Bound} model @param {string} inner @param {Knobs} own */
function candidate(n, x, model, inner, own) {
  const name = (/** @type {string} */ stream) => (n ? `candidate ${n}/${stream}` : stream);
  const branched = new Bound(model.plane, model.texts, model.progress, (stream, count) => model.randn(name(stream), count));
  if (n) {
    const noise = branched.randn("noise", x.z0.length);
    x = { ...x, noise, zt: sum([x.alpha, x.z0], [x.sigma, noise]) };
  }
  const residual = LOSSES[inner](x, branched, own), [pos, uncond] = branched.eps(x.zt, x.t, "pos", "uncond");
  const error = (/** @type {Point[]} */ eps, /** @type {number} */ i) =>
    (eps[i][0] - x.noise[i][0]) ** 2 + (eps[i][1] - x.noise[i][1]) ** 2;
  model.evaluations += branched.evaluations - 2; // the last two are the loss's own
  return { residual, scores: x.z0.map((_, i) => 0.5 * (error(uncond, i) - error(pos, i))) };
}

/** Return the weights of K residuals by their scores. @param {number[]} scores @param {Knobs} k */
function shares(scores, k) {
  if (k.weighting === "softmax") return softmax(scores.map((s) => s / k.temperature));
  const order = scores.map((_, n) => n).sort((a, b) => scores[b] - scores[a] || a - b);
  const rank = scores.map((_, n) => order.indexOf(n)), count = scores.length, most = count >= 4 ? 2 : 1;
  if (k.weighting === "best") return rank.map((r) => (r === 0 ? 1 : 0));
  return rank.map((r) => (r < most ? 0.9 / most : 0) - (r >= count - most ? 0.1 / most : 0));
}

// ---- one step ----

/** @type {Record<string, (alpha: number, sigma: number) => number>} */
const WEIGHTS = {
  "1-alphabar": (_, sigma) => sigma ** 2,
  uniform: () => 1,
  fantasia3d: (alpha, sigma) => alpha * sigma ** 2,
  "sigma/alpha": (alpha, sigma) => sigma / alpha,
};

/** Draw timesteps uniformly between two fractions, in single precision as torch does. @param {number[]} u */
export function timesteps(u, tMin, tMax) {
  const f = Math.fround, span = f(tMax - tMin), low = f(tMin);
  return u.map((one) => Math.min(Math.max(Math.trunc(f(f(low + f(f(one) * span)) * LEVELS)), 0), LEVELS - 1));
}

/** @typedef {{ active: string, steps: number, texts: Record<string, string>, losses: Record<string, Knobs>,
 *   schedule: { t_min: number, t_max: number, weight: string },
 *   optim: { lr: number, beta1: number, beta2: number, decay: number, ramp: number } }} Settings */

/** A run: points, Adam's moments, and what DDS and PDS compare with. */
export class Run {
  /** @param {Plane} plane @param {Point[]} points
   *  @param {{ uniform: (n: number, step: number) => number[], randn: (stream: string, n: number, step: number) => Point[] }} rng */
  constructor(plane, points, rng) {
    this.plane = plane;
    this.rng = rng;
    this.points = points.map((p) => /** @type {Point} */ ([...p]));
    this.step = 0;
    this.evaluations = 0; // for each point, in the last step
    this._moments = this._zeros();
    this._taken = 0; // updates since Adam was last reset
    this._regime = "";
    this._toggled = -1e6;
    /** @type {{ points: Point[], text: string } | null} */ this.reference = null;
  }

  _zeros() {
    return this.points.map(() => ({ m: [0, 0], v: [0, 0] }));
  }

  /** Freeze points and prompt for losses that edit. @param {string} text */
  keep(text) {
    this.reference = { points: this.points.map((p) => /** @type {Point} */ ([...p])), text };
  }

  /** Take one step. @param {Settings} s */
  advance(s) {
    const n = this.points.length, progress = this.step / s.steps;
    if ((s.active === "dds" || s.active === "pds") && !this.reference) this.keep(s.texts.pos);
    const t = timesteps(this.rng.uniform(n, this.step), s.schedule.t_min, s.schedule.t_max);
    const noise = this.rng.randn("noise", n, this.step), { alpha, sigma } = this.plane.marginal(t), z0 = this.points;
    const x = { z0, t, alpha, sigma, noise, zt: sum([alpha, z0], [sigma, noise]), ref: this.reference?.points };
    const texts = { ...s.texts, ref: this.reference?.text ?? s.texts.pos };
    const model = new Bound(this.plane, texts, progress, (stream, count) => this.rng.randn(stream, count, this.step));
    const residual = LOSSES[s.active](x, model, s.losses[s.active], s.losses);
    this.evaluations = model.evaluations;
    const fine = residual.every(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
    if (fine) this._update(residual.map((r, i) => {
      const w = WEIGHTS[s.schedule.weight](alpha[i], sigma[i]) / n;
      return [w * r[0], w * r[1]];
    }), s, progress);
    this.step += 1;
    return fine;
  }

  /** One step of Adam. @param {number[][]} grad @param {Settings} s @param {number} progress */
  _update(grad, s, progress) {
    const stage = s.active === "sbp" ? stageOf(s.losses.sbp, progress) : s.active === "reward" ? s.losses.reward.inner : "";
    const regime = `${s.active} ${stage}`.trim();
    if (this._regime && this._regime !== regime) {
      this._toggled = this.step;
      this._moments = this._zeros();
      this._taken = 0;
    }
    this._regime = regime;
    this._taken += 1;
    const { lr, beta1, beta2, decay, ramp } = s.optim;
    const rate = lr * decay ** Math.min(Math.max(progress, 0), 1) * Math.min(1, (this.step - this._toggled + 1) / Math.max(ramp, 1));
    const first = 1 - beta1 ** this._taken, second = Math.sqrt(1 - beta2 ** this._taken);
    this.points = this.points.map((p, i) => /** @type {Point} */ ([0, 1].map((d) => {
      const { m, v } = this._moments[i], g = grad[i][d];
      m[d] += (1 - beta1) * (g - m[d]);
      v[d] = beta2 * v[d] + (1 - beta2) * g * g;
      return p[d] - ((rate / first) * m[d]) / (Math.sqrt(v[d]) / second + 1e-15);
    })));
  }
}

/** Random numbers that depend on a seed, a step and a name, in the page; they are not those of Python. @param {number} seed */
export function streams(seed) {
  /** @param {string} name */
  const generator = (name) => {
    let state = 0x811c9dc5; // FNV-1a of the name
    for (const letter of name) state = Math.imul(state ^ (letter.codePointAt(0) ?? 0), 0x01000193);
    state ||= 1;
    const next = () => { // xorshift, Marsaglia 2003
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return (state >>> 0) / 2 ** 32;
    };
    for (let n = 0; n < 8; n++) next(); // similar names begin alike
    return next;
  };
  return {
    uniform(/** @type {number} */ n, /** @type {number} */ step) {
      const next = generator(`${seed}/${step}/t`);
      return Array.from({ length: n }, next);
    },
    randn(/** @type {string} */ stream, /** @type {number} */ n, /** @type {number} */ step) {
      const next = generator(`${seed}/${step}/${stream}`);
      return Array.from({ length: n }, () => {
        const radius = Math.sqrt(-2 * Math.log(1 - next())), angle = 2 * Math.PI * next();
        return /** @type {Point} */ ([radius * Math.cos(angle), radius * Math.sin(angle)]);
      });
    },
  };
}
