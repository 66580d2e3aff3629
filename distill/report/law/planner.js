"use strict";
/* The law of the page, or of the file that a reader dropped on it, and what follows from it. */
let law, supervised, distillation, draws;
/* The laws: the forms of distill/laws/forms/forms.py, in natural logarithms. */
const {exp, log, sqrt, abs, min, max, hypot} = Math;
const logaddexp = (a, b) => a > b ? a + Math.log1p(exp(b - a)) : b + Math.log1p(exp(a - b));
const powers = (p, N, D) => logaddexp(log(p.A) - p.alpha * log(N), log(p.B) - p.beta * log(D));
const FORMS = {
  supervised: p => (N, D) => p.E + exp(p.gamma * powers(p, N, D)),
  chinchilla: p => (N, D) => p.E + exp(powers(p, N, D)),
  distillation: (p, own) => (N, D, L_T) => {
    const inner = (log(L_T) - log(own(N, D)) - log(p.d1)) / p.f1;
    return L_T + exp(-p.c1 * p.f1 * logaddexp(0, inner) + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
  },
  "distillation-limit": (p, own) => (N, D, L_T) => {
    const gate = -p.kappa * exp((log(L_T) - log(own(N, D))) / p.f1);
    return L_T + exp(gate + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
  },
  overtaking: (p, own) => (N, D, L_T) => {
    const ratio = log(L_T) - log(own(N, D)), gate = -p.kappa * exp(ratio / p.f1);
    return L_T * exp(p.w * Math.expm1(gate) * ratio) + exp(gate + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
  },
};
const WEIGHTS = {best_case: [0, 0], teacher_inference: [1, 0], teacher_pretraining: [0, 1], pretraining_and_inference: [1, 1]};
const NAMES = {best_case: "best case", teacher_inference: "teacher inference", teacher_pretraining: "teacher pretraining",
  pretraining_and_inference: "pretraining and inference"};

/* Global minimisation: the arithmetic of distill/laws/planning/minimise.py. */
const WIDTH = 0.01, FLAT = 1e-9, NEAR = 1e-3, DONE = 1e-8, STEPS = Array.from({length: 14}, (_, k) => 4 ** -k);
const linspace = (a, b, n) => Array.from({length: n}, (_, i) => i == n - 1 ? b : a + (b - a) * i / (n - 1));
const clip = (x, a, b) => min(max(x, a), b);

function minimise(value, axes) {
  const [xs, ys] = [axes[0], axes[1] || [0]], rows = xs.length, columns = ys.length;
  const point = (i, j) => axes.length == 1 ? [xs[i]] : [xs[i], ys[j]];
  const grid = xs.map((_, i) => ys.map((_, j) => value(point(i, j))));
  const valleys = [];
  for (let i = 0; i < rows; i++) for (let j = 0; j < columns; j++) {
    let least = true;
    for (let a = -1; a <= 1 && least; a++) for (let b = -1; b <= 1; b++) {
      const other = grid[i + a]?.[j + b];
      if ((!a && !b) || other === undefined) continue;
      if (a < 0 || (!a && b < 0) ? !(grid[i][j] < other) : !(grid[i][j] <= other)) { least = false; break; }
    }
    if (least) valleys.push([grid[i][j], i, j]);
  }
  valleys.sort((a, b) => a[0] - b[0]);
  const low = axes.map(axis => axis[0]), high = axes.map(axis => axis[axis.length - 1]);
  const found = valleys.slice(0, 2).map(([, i, j]) => descend(value, point(i, j), low, high));
  return found.sort((a, b) => a.least - b.least);
}

function descend(value, z, low, high) {
  const d = z.length;
  let least = Infinity;
  for (let count = 0; count < 60; count++) {
    const centre = value(z), at = (...offset) => value(z.map((x, i) => x + WIDTH * (offset[i] || 0)));
    const unit = (i, k) => { const o = Array(d).fill(0); o[i] = k; return at(...o); };
    const g = [], bend = [];
    for (let i = 0; i < d; i++) {
      const v = [-2, -1, 1, 2].map(k => unit(i, k));
      g.push((v[0] - 8 * v[1] + 8 * v[2] - v[3]) / (12 * WIDTH));
      bend.push((-v[0] + 16 * v[1] - 30 * centre + 16 * v[2] - v[3]) / (12 * WIDTH ** 2));
    }
    const free = z.map((x, i) => !((x <= low[i] && g[i] > 0) || (x >= high[i] && g[i] < 0)));
    const slope = g.map((x, i) => free[i] ? x : 0);
    let step;
    if (d == 1) step = [-slope[0] / (abs(free[0] ? bend[0] : 1) + FLAT)];
    else {
      const mixed = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / (4 * WIDTH ** 2);
      let a = free[0] ? bend[0] : 1, c = free[1] ? bend[1] : 1;
      const b = free[0] && free[1] ? mixed : 0;
      const smallest = (a + c) / 2 - sqrt(((a - c) / 2) ** 2 + b * b);
      const shift = smallest > FLAT ? 0 : FLAT - 2 * smallest;
      a += shift; c += shift;
      const det = a * c - b * b;
      step = [-(c * slope[0] - b * slope[1]) / det, -(a * slope[1] - b * slope[0]) / det];
    }
    step = step.map(x => clip(x, -2, 2));
    const length = max(...step.map(abs)), near = length < NEAR;
    let chosen = z, reached = centre;
    for (const t of near ? [1] : STEPS) {
      const trial = z.map((x, i) => clip(x + t * step[i], low[i], high[i])), there = value(trial);
      if (near || there < reached) { chosen = trial; reached = there; }
    }
    const better = reached < centre;
    z = chosen; least = reached;
    if (!((better || near) && length > DONE)) break;
  }
  return {z, least};
}

function bisect(rises, low, high) {
  for (let k = 0; k < 52; k++) {
    const middle = (low + high) / 2;
    if (rises(middle)) high = middle; else low = middle;
  }
  return (low + high) / 2;
}

const SLOPE = 1e-3, slope = f => (f(-2 * SLOPE) - 8 * f(-SLOPE) + 8 * f(SLOPE) - f(2 * SLOPE)) / (12 * SLOPE);

/* Where the conditions of the optimum hold: Newton from near it, on N_T and D_T in logarithms. */
function polish(starts, value, N_S, compute, logits, training) {
  const {low, high} = law.bounds, F_S = F(N_S);
  const split = z => {
    const N_T = exp(z[0]), D_T = exp(z[1]), F_T = F(N_T), unit = 3 * F_S + logits * F_T;
    return {N_T, D_T, F_T, unit, D_S: (compute - 3 * training * F_T * D_T) / unit};
  };
  const teacher = (n, d) => supervised(exp(n), exp(d));
  const student = (D_S, L_T) => distillation(N_S, min(D_S, high), L_T);
  const conditions = ([n, d]) => {
    const {D_T, F_T, unit, D_S} = split([n, d]), L_T = teacher(n, d);
    const byN = slope(h => teacher(n + h, d)), byD = slope(h => teacher(n, d + h));
    const cost = slope(h => log(F(exp(n + h)))) * (1 + logits * D_S / (3 * training * D_T));
    const byLoss = slope(h => student(D_S, L_T * exp(h))) / L_T, byTokens = slope(h => student(D_S * exp(h), L_T));
    return [cost - byN / byD, byLoss * byD - byTokens * 3 * training * F_T * D_T / (D_S * unit)];
  };
  let z = starts[1];
  for (let k = 0; k < 6; k++) {
    const r = conditions(z), difference = (i, j) => {
      const up = z.slice(), down = z.slice();
      up[i] += SLOPE; down[i] -= SLOPE;
      return (conditions(up)[j] - conditions(down)[j]) / (2 * SLOPE);
    };
    const a = difference(0, 0), b = difference(1, 0), c = difference(0, 1), d = difference(1, 1), det = a * d - b * c;
    z = [z[0] - clip((d * r[0] - b * r[1]) / det, -0.5, 0.5), z[1] - clip((a * r[1] - c * r[0]) / det, -0.5, 0.5)];
  }
  const {D_S} = split(z), inside = z.every(x => x > log(low) && x < log(high)) && D_S > 0;
  if (!(inside && student(D_S, teacher(...z)) <= value + 1e-12)) z = starts[0];
  const end = split(z);
  return [end.N_T, end.D_T, end.D_S, teacher(...z)];
}

/* The cheapest teacher of a loss: along the contour of L_T the cost has one minimum. */
function cheapestTeacher(L_T, D_S, logits, training) {
  const low = log(law.bounds.low), high = log(law.bounds.high);
  const loss = (n, d) => supervised(exp(n), exp(d));
  const tokens = n => bisect(d => loss(n, d) < L_T, low, high);
  const rises = n => {
    if (!(loss(n, high) <= L_T)) return false;
    const d = tokens(n), spent = 3 * training * exp(d);
    const byN = slope(h => loss(n + h, d)), byD = slope(h => loss(n, d + h));
    return slope(h => log(F(exp(n + h)))) - spent / (logits * D_S + spent) * byN / byD > 0;
  };
  const n = bisect(rises, low, high);
  return [exp(n), exp(tokens(n))];
}

/* The best split of a budget: distill/laws/planning/allocation.py. */
function solve(N_S, compute, logits, training) {
  const {low, high} = law.bounds, a = log(low), b = log(high), F_S = F(N_S);
  const kind = training ? "share" : logits ? "edge" : "loss";
  const best = supervised(high, high), worst = supervised(low, low);
  const axes = {loss: [[log(1e-8), log(worst - best), 640]], edge: [[0, 2 * (b - a), 512]],
    share: [[a, b, 52], [-30, 14, 45]]}[kind].map(axis => linspace(...axis));
  const place = z => {
    if (kind == "loss") return [NaN, NaN, compute / (3 * F_S), best + exp(z[0])];
    if (kind == "edge") {
      const D_T = exp(min(a + z[0], b)), N_T = exp(max(a, 2 * a - b + z[0]));
      return [N_T, D_T, compute / (3 * F_S + logits * F(N_T)), supervised(N_T, D_T)];
    }
    const N_T = exp(z[0]), F_T = F(N_T), share = 1 / (1 + exp(-z[1]));
    const D_T = min(share * compute / (3 * training * F_T), high);
    return [N_T, D_T, (1 - share) * compute / (3 * F_S + logits * F_T), supervised(N_T, D_T)];
  };
  const loss = z => { const [, , D_S, L_T] = place(z); return distillation(N_S, min(D_S, high), L_T); };
  const [found, second] = minimise(loss, axes);
  let [N_T, D_T, D_S, L_T] = place(found.z);
  if (kind == "loss") [N_T, D_T] = cheapestTeacher(L_T, D_S, 0, 1);
  if (kind == "share") {
    const starts = [[N_T, D_T], cheapestTeacher(L_T, D_S, logits, training)].map(z => z.map(log));
    [N_T, D_T, D_S, L_T] = polish(starts, found.least, N_S, compute, logits, training);
  }
  D_S = min(D_S, high);
  const split = {N_S, D_S, N_T, D_T, L_T, L_S: distillation(N_S, D_S, L_T)};
  return second ? {...split, second_N_T: place(second.z)[0], second_L_S: second.least} : split;
}

const shared = (name, m, store) => {
  const [logits, training] = WEIGHTS[name];
  return [store ? logits / m : logits, training / m];
};

/* A whole plan: what the page shows. */
function outcome(asked) {
  const {N_S, compute, scenario, m = 1, store = false, given = null} = asked;
  const [logits, training] = shared(scenario, m, store);
  let split;
  if (given) {
    const D_S = min(compute / (3 * F(N_S) + logits * F(given.N_T)), law.bounds.high);
    split = {N_S, D_S, N_T: given.N_T, D_T: NaN, L_T: given.L_T, L_S: distillation(N_S, D_S, given.L_T)};
  } else split = solve(N_S, compute, logits, training);
  const alone = min(compute / (3 * F(N_S)), law.bounds.high);
  const bill = {student: 3 * F(N_S) * split.D_S, logits: logits * F(split.N_T) * split.D_S || 0,
    teacher: given ? 0 : training * 3 * F(split.N_T) * split.D_T || 0};
  return {...split, supervised_D: alone, supervised_L: supervised(N_S, alone), bill};
}
const plan = asked => { const found = outcome(asked); return {...found, crossover_tokens: crossoverTokens(asked.N_S, found.L_T)}; };

const geomspace = (a, b, n) => linspace(log(a), log(b), n).map((x, i) => i ? (i == n - 1 ? b : exp(x)) : a);
function lastCatchUp(gain) {
  for (let i = gain.length - 2; i >= 0; i--) if (gain[i] < 0 && gain[i + 1] >= 0) return i;
  return -1;
}
function crossoverTokens(N_S, L_T) {
  const gain = D => distillation(N_S, D, L_T) - supervised(N_S, D);
  const D = geomspace(law.bounds.low / 1e3, law.bounds.high, 512), at = lastCatchUp(D.map(gain));
  if (at < 0) return null;
  let [low, high] = [D[at], D[at + 1]];
  for (let k = 0; k < 50; k++) { const middle = sqrt(low * high); if (gain(middle) < 0) low = middle; else high = middle; }
  return sqrt(low * high);
}

/* Every parameter of the r-th resampled law. */
const at = (columns, r) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[r]]));
function use(next) {
  const own = FORMS[next.supervised.form], students = FORMS[next.distillation.form], inside = next.distillation.supervised;
  law = next;
  supervised = own(next.supervised.parameters);
  distillation = students(next.distillation.parameters, FORMS[inside.form](inside.parameters));
  draws = next.draws ? next.draws.supervised.E.map((_, r) => {
    const alone = own(at(next.draws.supervised, r));
    return {own: alone, taught: students(at(next.draws.distillation, r), alone)};
  }) : [];
  cache.clear();
}
const F = N => 2 * N * (1 + law.flops[0] * N ** (-1 / 3) + law.flops[1] * N ** (-2 / 3));

/* A law file of `distill fit`, as the data of this page: what distill/report/law/planner_page.py makes of it. */
const SIZES = [1e8, 1e11], LOSSES = [1.6, 2.8], BUDGETS = [1e19, 1e25];
function fromFile(tree, name) {
  const fail = why => { throw new Error(`${name}: ${why}`); };
  const form = tree?.form, inside = tree?.supervised;
  if (typeof form != "string" || !inside) fail("wanted a law of students with its supervised law inside, as `distill fit --out` writes it");
  if (!STUDENTS.includes(form)) fail(`the page knows laws of students of the forms ${STUDENTS.join(", ")}; got ${form}`);
  if (!ALONE.includes(inside.form)) fail(`the page knows supervised laws of the forms ${ALONE.join(", ")}; got ${inside.form}`);
  const numbers = values => Object.values(values ?? {}).every(v => typeof v == "number" && isFinite(v));
  if (!numbers(tree.parameters) || !numbers(inside.parameters)) fail("parameters are damaged; wanted finite numbers");
  const region = tree.region && Object.fromEntries(["N_S", "D_S", "L_T", "N_T", "D_T"].map(k => [k, tree.region[k] ?? [0, 1e30]]));
  const flops = tree.flops ?? PAPER_FLOPS, own = N => 2 * N * (1 + flops[0] * N ** (-1 / 3) + flops[1] * N ** (-2 / 3));
  let [sizes, teachers, losses, compute] = [SIZES, SIZES, LOSSES, BUDGETS];
  if (region) {
    const taught = region.N_T[1] >= 1e30 ? region.N_S : region.N_T;
    [sizes, teachers] = [[region.N_S[0] / 2, region.N_S[1] * 10], [taught[0] / 2, taught[1] * 10]];
    losses = [region.L_T[0] * 0.9, region.L_T[1] * 1.05];
    compute = [3 * own(region.N_S[0]) * region.D_S[0], 300 * own(region.N_S[1]) * region.D_S[1]];
  }
  const stack = tree.draws && stacked(tree, inside), span = ends => ends.map(Math.log10);
  const middle = ([a, b]) => [a, b, a + (b - a) / 3].map(x => Math.round(100 * x) / 100);
  return {name, supervised: inside, distillation: {form, parameters: tree.parameters, supervised: inside}, draws: stack, flops,
    caveats: [...(stack && !tree.draws.supervised ? [CAVEAT] : []), ...(stack && tree.predictions ? [first.uncalibrated] : [])],
    bounds: {low: min(1e6, sizes[0] / 1e3), high: 1e17}, region: region ?? null,
    ranges: {compute: span(compute), L_T: losses},
    sliders: {N_S: middle(span(sizes)), compute: middle(span(compute)), N_T: middle(span(teachers)),
      L_T: [losses[0], losses[1], Math.round(50 * (losses[0] + losses[1])) / 100]}};
}
/* The draws of both laws as columns of one length; what was not resampled is repeated. */
function stacked(tree, inside) {
  const count = max(...Object.values(tree.draws).filter(Array.isArray).map(v => v.length));
  const fill = (parameters, columns) => Object.fromEntries(Object.entries(parameters).map(([k, v]) => [k, columns?.[k] ?? Array(count).fill(v)]));
  const {supervised: below, ...own} = tree.draws;
  return {distillation: fill(tree.parameters, own), supervised: fill(inside.parameters, below)};
}

/* How sure: this very plan under every resampled law, as distill/laws/planning/intervals.py has it. */
function percentiles(values) {
  const sorted = Float64Array.from(values).sort(), last = sorted.length - 1;
  return [0.05, 0.95].map(q => {
    const place = q * last, low = Math.floor(place);
    return sorted[low] + (place - low) * (sorted[min(low + 1, last)] - sorted[low]);
  });
}
function pairs(found, given) {
  const D_S = min(found.D_S, law.bounds.high);
  return draws.map(({own, taught}) => [
    taught(found.N_S, D_S, given || !isFinite(found.N_T) ? found.L_T : own(found.N_T, found.D_T)), own(found.N_S, found.supervised_D)]);
}
function doubt(found, asked) {
  if (!draws.length) return null;
  const both = pairs(found, asked.given);
  return {L_S: percentiles(both.map(p => p[0])), supervised_L: percentiles(both.map(p => p[1])),
    probability: both.filter(([student, alone]) => alone > student).length / both.length};
}

/* The warnings of distill/laws/planning/planner.py and region.py. */
function warnings(found, asked) {
  const out = [], own = supervised(asked.N_S, found.D_S), {low, high} = law.bounds, [logits, training] = WEIGHTS[asked.scenario];
  const free = !asked.given && logits > 0 && !training, value = name => name == "L_T" ? found[name].toFixed(3) : engineering(found[name]);
  if (found.L_T > own) out.push(`the teacher (L_T ${found.L_T.toFixed(3)}) is worse than the student alone on the same tokens (${own.toFixed(3)})`);
  if (!asked.given) for (const name of ["N_T", "D_T", "D_S"]) {
    if (name == "D_T" && free) continue;
    if (found[name] > 0.999 * high) out.push(`${name} is at the upper bound of the search (${general(high)})`);
    else if (found[name] < 1.001 * low && name != "D_S") out.push(`${name} is at the lower bound of the search (${general(low)})`);
  }
  if (free) out.push("D_T is at the search bound because the teacher is free here; only L_T is meaningful");
  if (found.second_L_S < found.L_S * (1 + STANDS_OUT) && abs(log(found.second_N_T / found.N_T)) > 0.5)
    out.push(`a second optimum has N_T = ${engineering(found.second_N_T)} and nearly the same loss (${found.second_L_S.toFixed(4)})`);
  if (asked.given && training) out.push("an existing teacher's training is sunk and not counted");
  for (const name of ["N_S", "D_S", "L_T", ...(asked.given ? [] : free ? ["N_T"] : ["N_T", "D_T"])]) {
    const range = law.region?.[name];
    if (!range) continue;
    const [least, most] = range, x = found[name];
    if (name == "L_T") {
      if (!(least / 1.02 <= x && x <= most * 1.02)) out.push(`L_T = ${value(name)} lies outside the fitted runs (${least.toFixed(3)} to ${most.toFixed(3)})`);
    } else if (x > 1.05 * most) out.push(`${name} = ${value(name)} is ${general(x / most)} times the largest fitted (${engineering(most)})`);
    else if (x < least / 1.05) out.push(`${name} = ${value(name)} is only ${general(x / least, 2)} of the least fitted (${engineering(least)})`);
  }
  return [...out, ...law.caveats];
}
window.planner = {plan, doubt, warnings, solve, supervised: (...x) => supervised(...x), distillation: (...x) => distillation(...x), F, crossoverTokens};

/* Text of numbers, as Python writes them; numbers of text, as people type them. */
function general(x, digits = 3) {
  if (!isFinite(x)) return "inf";
  const [mantissa, power] = x.toExponential(digits - 1).split("e");
  if (+power >= -4 && +power < digits) return String(Number(x.toPrecision(digits)));
  return `${Number(mantissa)}e${power[0]}${power.slice(1).padStart(2, "0")}`;
}
function engineering(x) {
  if (!isFinite(x) || x >= 1e15) return general(x);
  const rounded = Number(x.toPrecision(3));
  for (const [scale, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]]) if (rounded >= scale) return general(rounded / scale) + suffix;
  return general(rounded);
}
const SUFFIX = {k: 1e3, m: 1e6, b: 1e9, g: 1e9, t: 1e12};
const FLOPS = /^(flops?)?$/i, HOURS = /^((gpu|accelerator|chip|tpu)?[- ]?h(ours?|rs?)?)$/i, MONEY = /^(\$|usd|dollars?|eur|euros?|\u20ac)$/i, DAYS = /^d(ays?)?$/i;
function quantity(text) {
  const clean = text.trim().replace(/^([$\u20ac])\s*(.*)$/, "$2 $1").replaceAll("_", "").replace(/(\d),(?=\d{3})/g, "$1");
  const found = /^(\d*\.?\d+(?:e[+-]?\d+)?)\s*([kmbgt](?![a-z]))?\s*(.*)$/i.exec(clean);
  return found ? [Number(found[1]) * (SUFFIX[found[2]?.toLowerCase()] ?? 1), found[3].trim()] : [NaN, ""];
}
function positive(id, name) {
  const [value, unit] = quantity($(id).value);
  if (!(value > 0 && isFinite(value)) || unit) throw {id, why: `${name}: got "${$(id).value}", wanted a positive number such as ${EXAMPLES[id]}`};
  return value;
}
const EXAMPLES = {N_S: "1.5B", budget: "1e22, 20K GPU-hours, $50K or 14 days", N_T: "7B", L_T: "2.1", m: "4", mfu: "40", hourly: "3.99", accelerators: "64"};
/* FLOPs of a budget: hours times peak times the share of it that training reaches, as distill/laws/planning/budget.py has it. */
function bought(prices) {
  const [value, unit] = quantity($("budget").value), hour = 3600 * prices.peak * prices.mfu;
  const wrong = why => { throw {id: "budget", why}; };
  if (!(value > 0 && isFinite(value))) wrong(`budget: got "${$("budget").value}", wanted a positive number such as ${EXAMPLES.budget}`);
  if (FLOPS.test(unit)) return value;
  if (HOURS.test(unit)) return value * hour;
  if (DAYS.test(unit)) return value * 24 * prices.accelerators * hour;
  if (!MONEY.test(unit)) wrong(`budget: "${unit}" is no unit; wanted FLOPs, GPU-hours, dollars or days`);
  if (!(prices.hourly > 0)) wrong(`budget: there is no list price of ${prices.name}; type what an hour costs`);
  return value / prices.hourly * hour;
}
function priced() {
  const name = $("chip").value, [peak, hourly, currency, source] = law.chips[name];
  const own = $("hourly").value.trim() ? positive("hourly", "price") : hourly;
  return {name, peak, currency, source: own === hourly ? source : "as given", hourly: own, mfu: positive("mfu", "MFU") / 100, accelerators: positive("accelerators", "accelerators")};
}

/* The page. */
const $ = id => document.getElementById(id);
const STANDS_OUT = 0.005, DASH = {best_case: "-", teacher_inference: "--", teacher_pretraining: "-.", pretraining_and_inference: "-"};
const COLOUR = {best_case: "blue", teacher_inference: "orange", teacher_pretraining: "green", pretraining_and_inference: "purple", supervised: "ink"};
const first = JSON.parse($("law").textContent), PAPER_FLOPS = first.paper_flops, CAVEAT = first.caveat, STUDENTS = Object.keys(FORMS).filter(n => FORMS[n].length == 2), ALONE = Object.keys(FORMS).filter(n => FORMS[n].length == 1);
const cache = new Map();
const FIELDS = ["N_S", "budget", "scenario", "teacher", "N_T", "L_T", "m", "store", "chip", "mfu", "hourly", "accelerators"];
const percent = x => (100 * x).toFixed(x < 0.1 ? 1 : 0) + "%";
const money = (value, prices) => prices.hourly > 0 ? `${Math.round(value * prices.hourly).toLocaleString("en-US")} ${prices.currency}` : "unknown";

function read() {
  const prices = priced(), given = $("teacher").value == "given";
  return {N_S: positive("N_S", "student size"), compute: bought(prices), scenario: $("scenario").value, m: Math.max(Math.round(positive("m", "students")), 1),
    store: $("store").checked, given: given ? {N_T: positive("N_T", "teacher size"), L_T: positive("L_T", "teacher loss")} : null, prices};
}
/* The advice in the words of `distill plan`. */
function sentence(found, asked, sure) {
  const within = name => sure ? ` [${sure[name].map(x => x.toFixed(3)).join(", ")}]` : "", distil = found.L_S < found.supervised_L;
  const trained = found.D_T < 1e16 ? `${engineering(found.D_T)} tokens` : "unlimited tokens", loss = `(L_T ${found.L_T.toFixed(3)})`;
  const source = asked.given ? `a ${engineering(found.N_T)} teacher that exists ${loss}` : `a ${engineering(found.N_T)} teacher of ${trained} ${loss}`;
  const taught = `${engineering(found.N_S)} student on ${engineering(found.D_S)} tokens from ${source}`;
  const alone = `${engineering(found.N_S)} model on ${engineering(found.supervised_D)} tokens`;
  const expected = found.L_S.toFixed(3) + within("L_S"), other = found.supervised_L.toFixed(3) + within("supervised_L");
  const text = distil ? `Distil a ${taught}: expected loss ${expected} against ${other} for supervised training of a ${alone}`
    : `Pretrain: supervised training of a ${alone} gives ${other}, distilling a ${taught} ${expected}`;
  return text + (sure ? `; distillation wins with probability ${sure.probability.toFixed(2)}` : "") + ` (${asked.scenario}).`;
}

function show() {
  document.querySelectorAll(".given").forEach(e => { e.hidden = $("teacher").value != "given"; });
  document.querySelectorAll("[aria-invalid]").forEach(e => e.removeAttribute("aria-invalid"));
  $("problem").textContent = "";
  let asked;
  try { asked = read(); } catch (error) {
    if (!error.id) throw error;
    $(error.id).setAttribute("aria-invalid", "true");
    $("problem").textContent = error.why;
    return;
  }
  const found = plan(asked), sure = doubt(found, asked), told = warnings(found, asked);
  for (const id of ["N_S", "N_T", "L_T"]) $(`${id}_slider`).value = id == "L_T" ? quantity($(id).value)[0] : Math.log10(quantity($(id).value)[0]);
  $("compute_slider").value = Math.log10(asked.compute);
  $("compute_out").textContent = `${general(asked.compute)} FLOPs`;
  $("price").textContent = `${asked.prices.name}: ${general(asked.prices.peak / 1e12, 4)} TFLOP/s peak; ` + (asked.prices.hourly > 0
    ? `${asked.prices.hourly} ${asked.prices.currency} an accelerator-hour (${asked.prices.source})` : "no list price known");
  $("advice").textContent = sentence(found, asked, sure);
  $("warning").replaceChildren(...told.map(text => charts.make("li", {}, text)));
  bar(found.bill);
  numbers(found, asked, sure);
  remember();
  clearTimeout(show.timer);
  show.timer = setTimeout(() => draw(found, asked, sure), 60);
}

function bar(bill) {
  const total = bill.student + bill.logits + bill.teacher;
  const parts = [["student training", bill.student, "blue"], ["teacher's logits", bill.logits, "orange"], ["teacher's training", bill.teacher, "green"]].filter(p => p[1] > 0);
  $("bar").replaceChildren(...parts.map(([, part, color]) => charts.make("span", {class: `part-${color}`, style: `width:${100 * part / total}%`})));
  $("bar").setAttribute("aria-label", parts.map(([name, part]) => `${name} ${percent(part / total)}`).join(", "));
  $("split").replaceChildren(...parts.map(([name, part, color]) => charts.make("li", {}, charts.make("i", {class: `part-${color}`}), `${name} ${percent(part / total)}`)));
}

function numbers(found, asked, sure) {
  const within = name => sure ? ` [${sure[name].map(x => x.toFixed(4)).join(", ")}]` : "", {prices} = asked;
  const hours = asked.compute / (prices.peak * prices.mfu * 3600);
  const rows = [["student tokens", engineering(found.D_S)], ["teacher size", engineering(found.N_T)],
    ["teacher tokens", asked.given ? "-" : found.D_T < 1e16 ? engineering(found.D_T) : "unlimited"],
    ["teacher loss", found.L_T.toFixed(4)], ["student loss", found.L_S.toFixed(4) + within("L_S")],
    ["supervised loss", found.supervised_L.toFixed(4) + within("supervised_L")],
    ["accelerator-hours", general(hours, 4)], [`days on ${general(prices.accelerators, 6)}`, general(hours / 24 / prices.accelerators)],
    ["price", money(hours, prices)],
    ["supervised catches up with this teacher at", found.crossover_tokens ? engineering(found.crossover_tokens) + " tokens" : "never"],
    ["supervised catches up with this scenario at", "..."]];
  $("numbers").replaceChildren(...rows.map(([name, value], i) => charts.make("tr", {},
    charts.make("th", {scope: "row"}, name), charts.make("td", i == rows.length - 1 ? {id: "crossover"} : {}, value))));
}

/* Charts. */
const plain = {line: "", marker: "", size: 5, width: 1.6, alpha: 1, hollow: false, named: true, starts: [], low: [], high: [], left: [], right: [], facts: {}};
const series = (label, colour, points, more = {}) => ({...plain, label, color: law.colours[colour], line: "-", x: points.map(p => p[0]), y: points.map(p => p[1]), ...more});
const dot = (colour, x, y) => series("this plan", colour, [[x, y]], {line: "", marker: "o", size: 10});
const axis = (label, log = false, lim = null) => ({label, log, lim, ticks: [], count: false});
const show_chart = (id, name, x, y, all, shades) => charts.show($(id), {name, columns: 1, shared: false, height: 3.1, note: "",
  panels: [{title: "", x, y, series: all, notes: [], shades, weight: 1}]});
const LOSS = "loss (nats per token)";

/* Budgets with the split of each scenario. */
function curves(asked) {
  const name = JSON.stringify([asked.N_S, asked.m, asked.store, asked.given]);
  if (!cache.has(name)) {
    if (cache.size > 40) cache.clear();
    const budgets = linspace(...law.ranges.compute, 41).map(c => 10 ** c), lines = {};
    for (const scenario of Object.keys(WEIGHTS)) lines[scenario] = budgets.map(compute => outcome({...asked, compute, scenario}));
    cache.set(name, {budgets, lines});
  }
  return cache.get(name);
}
/* The stretches of budgets at which the plan leaves the sizes and tokens of the fitted runs. */
function outside(asked, budgets, line) {
  const region = law.region, text = "never measured";
  if (!region) return [];
  const inside = found => found.N_S <= 1.05 * region.N_S[1] && found.N_S >= region.N_S[0] / 1.05 && found.D_S <= 1.05 * region.D_S[1] && found.D_S >= region.D_S[0] / 1.05;
  const known = line.map(inside), from = known.indexOf(true), to = known.lastIndexOf(true), last = budgets.length - 1;
  if (from < 0) return [[budgets[0], budgets[last], text]];
  return [from > 0 && [budgets[0], budgets[from], text], to < last && [budgets[to], budgets[last], text]].filter(Boolean);
}
function draw(found, asked, sure) {
  const {budgets, lines} = curves(asked), mine = lines[asked.scenario], color = COLOUR[asked.scenario], shades = outside(asked, budgets, mine);
  const alone = mine.map((p, i) => [budgets[i], p.supervised_L]);
  const all = Object.entries(lines).map(([name, line]) => series(NAMES[name], COLOUR[name], line.map((p, i) => [budgets[i], p.L_S]),
    {line: DASH[name], alpha: name == asked.scenario ? 1 : 0.5, width: name == asked.scenario ? 2.2 : 1.4}));
  all.push(series("supervised", "ink", alone, {line: ":"}), dot(color, asked.compute, found.L_S));
  show_chart("by_compute", "loss", axis("compute (FLOPs)", true), axis(LOSS), all, shades);
  const gain = mine.map(p => p.L_S - p.supervised_L), rows = mine.map((p, i) => [budgets[i], gain[i]]);
  const ends = draws.length ? mine.map(p => percentiles(pairs(p, asked.given).map(([student, other]) => student - other))) : [];
  const band = ends.length ? {low: ends.map(e => e[0]), high: ends.map(e => e[1])} : {};
  const size = max(...gain.map(abs), 0.01), lim = [min(...gain) - 0.3 * size, max(...gain, 0) + 0.3 * size];
  show_chart("difference", "difference", axis("compute (FLOPs)", true), axis("distilling minus pretraining (nats)", false, lim), [
    series("no difference", "soft", [[budgets[0], 0], [budgets.at(-1), 0]], {line: ":", named: false}),
    series(`${NAMES[asked.scenario]} minus supervised` + (ends.length ? ", 90%" : ""), color, rows, band),
    dot(color, asked.compute, found.L_S - found.supervised_L)], shades);
  const [low, high] = law.ranges.L_T, own = supervised(found.N_S, found.D_S), known = law.region?.L_T;
  const grey = known ? [low < known[0] && [low, known[0], "never measured"], high > known[1] && [known[1], high, "never measured"]].filter(Boolean) : [];
  show_chart("by_teacher", "teacher", axis("teacher's loss (nats per token)", false, [low, high]), axis(`student's ${LOSS}`), [
    series("supervised, same tokens", "ink", [[low, own], [high, own]], {line: ":"}),
    series("student", color, linspace(low, high, 121).map(x => [x, distillation(found.N_S, found.D_S, x)])), dot(color, found.L_T, found.L_S)], grey);
  const place = lastCatchUp(gain), [a, b] = [log(budgets[place]), log(budgets[place + 1])];
  $("crossover").textContent = place < 0 ? (gain.at(-1) < 0 ? "no budget shown" : "every budget shown")
    : general(exp(a + gain[place] / (gain[place] - gain[place + 1]) * (b - a))) + " FLOPs";
}

/* The state in the address, the sentence to share, and a law of one's own. */
const value = id => $(id).type == "checkbox" ? ($(id).checked ? "yes" : "") : $(id).value.trim();
function remember() {
  const state = new URLSearchParams(FIELDS.filter(id => value(id)).map(id => [id, value(id)]));
  if (!location.href.startsWith("about:")) history.replaceState(null, "", "#" + state);
}
function recall() {
  for (const [id, text] of new URLSearchParams(location.hash.slice(1))) if (FIELDS.includes(id)) {
    if ($(id).type == "checkbox") $(id).checked = text == "yes";
    else if ($(id).tagName != "SELECT" || [...$(id).options].some(o => o.value == text)) $(id).value = text;
  }
}
async function share() {
  const text = `${$("advice").textContent}${[...$("warning").children].map(e => ` Warning: ${e.textContent}.`).join("")} ${location.href}`;
  $("shared").value = text;
  $("shared").hidden = false;
  $("shared").select();
  try { await navigator.clipboard.writeText(text); $("copied").textContent = "Copied."; } catch { $("copied").textContent = "Copy it from here:"; }
}
async function open(file) {
  try { begin({...first, ...fromFile(JSON.parse(await file.text()), file.name)}); } catch (error) {
    $("problem").textContent = error instanceof SyntaxError ? `${file.name}: not a law file (no JSON)` : error.message;
  }
}
function begin(next) {
  use(next);
  $("name").textContent = law.name;
  for (const [id, [low, high, start]] of Object.entries(law.sliders)) {
    Object.assign($(`${id}_slider`), {min: low, max: high, value: start});
    $(id == "compute" ? "budget" : id).value = id == "L_T" ? start : id == "compute" ? general(10 ** start) : engineering(10 ** start);
  }
  show();
}
function setup() {
  $("chip").replaceChildren(...Object.keys(first.chips).map(name => charts.make("option", {value: name}, name)));
  $("chip").value = first.chip;
  const slid = (id, target, words) => $(id).addEventListener("input", event => { $(target).value = words(+$(id).value); event.stopPropagation(); show(); });
  slid("N_S_slider", "N_S", x => engineering(10 ** x));
  slid("N_T_slider", "N_T", x => engineering(10 ** x));
  slid("L_T_slider", "L_T", x => x.toFixed(3));
  slid("compute_slider", "budget", x => general(10 ** x));
  $("controls").addEventListener("input", show);
  $("controls").addEventListener("submit", event => event.preventDefault());
  $("share").addEventListener("click", share);
  $("file").addEventListener("change", () => $("file").files.length && open($("file").files[0]));
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("over"); });
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("over");
    if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
  });
  const asked = location.hash;
  begin(first);
  if (asked) { history.replaceState(null, "", asked); recall(); show(); }
}
setup();
