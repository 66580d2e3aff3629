"use strict";
/* The best split of a budget under the laws of planner_laws.js: the arithmetic of distill/laws/planning/minimise.py,
   allocation.py and crossover.py. */
const WEIGHTS = {best_case: [0, 0], teacher_inference: [1, 0], teacher_pretraining: [0, 1], pretraining_and_inference: [1, 1]};

/* Global minimisation: the arithmetic of distill/laws/planning/minimise.py. */
const WIDTH = 0.01, FLAT = 1e-9, NEAR = 1e-3, DONE = 1e-8, STEPS = Array.from({length: 14}, (_, k) => 4 ** -k);

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
  const {low, high} = bounds, F_S = F(N_S);
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

/* [log N, loss] of the best teacher of all: the largest, except where repeated text makes large models overfit. */
function strongest() {
  const {low, high} = bounds;
  if (!current.ownReads || unique >= UNLIMITED) return [log(high), supervised(high, high)];
  const sizes = linspace(log(low), log(high), 512), losses = sizes.map(n => supervised(exp(n), high)), least = losses.indexOf(min(...losses));
  return [sizes[least], losses[least]];
}

/* The cheapest teacher of a loss: along the contour of L_T the cost has one minimum. */
function cheapestTeacher(L_T, D_S, logits, training) {
  const low = log(bounds.low), high = log(bounds.high);
  const loss = (n, d) => supervised(exp(n), exp(d));
  /* A law of repeated text is flat beyond its useful tokens: all of them reach L_T, and the fewest are wanted. */
  const goal = current.ownReads ? L_T * (1 + 1e-7) : L_T, tokens = n => bisect(d => loss(n, d) < goal, low, high);
  const rises = n => {
    if (!(loss(n, high) <= L_T)) return false;
    const d = tokens(n), spent = 3 * training * exp(d);
    const byN = slope(h => loss(n + h, d)), byD = slope(h => loss(n, d + h));
    return slope(h => log(F(exp(n + h)))) - spent / (logits * D_S + spent) * byN / byD > 0;
  };
  const n = bisect(rises, low, strongest()[0]);
  return [exp(n), exp(tokens(n))];
}

/* The best split of a budget: distill/laws/planning/allocation.py. */
function solve(N_S, compute, logits, training) {
  const {low, high} = bounds, a = log(low), b = log(high), F_S = F(N_S);
  const kind = training ? "share" : logits ? "edge" : "loss";
  const best = strongest()[1], worst = supervised(low, low);
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
  ask(asked);
  const [logits, training] = shared(scenario, m, store);
  let split;
  if (given) {
    const D_S = min(compute / (3 * F(N_S) + logits * F(given.N_T)), bounds.high);
    split = {N_S, D_S, N_T: given.N_T, D_T: NaN, L_T: given.L_T, L_S: distillation(N_S, D_S, given.L_T)};
  } else split = solve(N_S, compute, logits, training);
  const alone = min(compute / (3 * F(N_S)), bounds.high);
  const bill = {student: 3 * F(N_S) * split.D_S, logits: logits * F(split.N_T) * split.D_S || 0,
    teacher: given ? 0 : training * 3 * F(split.N_T) * split.D_T || 0};
  return {...split, supervised_D: alone, supervised_L: supervised(N_S, alone), bill};
}
const plan = asked => { const found = outcome(asked); return {...found, crossover_tokens: crossoverTokens(asked.N_S, found.L_T)}; };

/* Where supervised training catches up: the last budget, or number of tokens, at which the gain turns positive. */
function lastCatchUp(gain) {
  for (let i = gain.length - 2; i >= 0; i--) if (gain[i] < 0 && gain[i + 1] >= 0) return i;
  return -1;
}
function interpolate(x, gain) {
  const i = lastCatchUp(gain);
  if (i < 0) return null;
  const share = gain[i] == gain[i + 1] ? 0 : gain[i] / (gain[i] - gain[i + 1]);
  return exp(log(x[i]) + share * (log(x[i + 1]) - log(x[i])));
}
function crossoverTokens(N_S, L_T) {
  const gain = D => distillation(N_S, D, L_T) - supervised(N_S, D);
  const D = geomspace(bounds.low / 1e3, bounds.high, 512), at = lastCatchUp(D.map(gain));
  if (at < 0) return null;
  let [low, high] = [D[at], D[at + 1]];
  for (let k = 0; k < 50; k++) { const middle = sqrt(low * high); if (gain(middle) < 0) low = middle; else high = middle; }
  return sqrt(low * high);
}
/* The gain of each budget, one step at a time: a generator that pauses after each. */
function* gains(asked, budgets) {
  const found = [];
  for (const compute of budgets) {
    const {L_S, supervised_L} = outcome({...asked, compute});
    found.push(L_S - supervised_L);
    yield;
  }
  return found;
}
function* crossoverCompute(asked) {
  ask(asked);
  const scale = 3 * F(asked.N_S), {low, high} = bounds;
  if (asked.given) {
    const budgets = geomspace(scale * low / 1e3, scale * high / 10, 1024);
    return interpolate(budgets, yield* gains(asked, budgets));
  }
  let ends = [scale * low, scale * high / 10], budgets, gain;
  for (let scan = 0; scan < 3; scan++) {
    budgets = geomspace(...ends, 64);
    gain = yield* gains(asked, budgets);
    const i = lastCatchUp(gain);
    if (i < 0) return null;
    ends = [budgets[i], budgets[i + 1]];
  }
  return interpolate(budgets, gain);
}
