"use strict";
/* The laws of the planner's page: their forms, repeated text, and what a law file says. The arithmetic is that of
   distill/laws/forms and distill/laws/planning/repeats.py, in natural logarithms. */
const {exp, log, sqrt, abs, min, max} = Math;
const logaddexp = (a, b) => a > b ? a + Math.log1p(exp(b - a)) : b + Math.log1p(exp(a - b));
const powers = (p, N, D) => logaddexp(log(p.A) - p.alpha * log(N), log(p.B) - p.beta * log(D));
const linspace = (a, b, n) => Array.from({length: n}, (_, i) => i == n - 1 ? b : a + (b - a) * i / (n - 1));
const geomspace = (a, b, n) => linspace(log(a), log(b), n).map((x, i) => i ? (i == n - 1 ? b : exp(x)) : a);
const clip = (x, a, b) => min(max(x, a), b);

/* What repetition costs beside a fresh token: P R**delta (N/U)**power, R = D/U - 1. */
const penalty = (p, power, N, D, U) => D > U ? exp(log(p.P) + p.delta * log(D / U - 1) + power * (log(N) - log(U))) : 0;
/* Supervised laws of (N, D, U); those without U take it and do not read it. */
const ALONE = {
  supervised: p => (N, D) => p.E + exp(p.gamma * powers(p, N, D)),
  chinchilla: p => (N, D) => p.E + exp(powers(p, N, D)),
  kaplan: p => (N, D) => exp(p.alpha_D * logaddexp(p.alpha_N / p.alpha_D * (log(p.N_c) - log(N)), log(p.D_c) - log(D))),
  farseer: p => (N, D) => {
    const n = log(N), falling = exp(p.a1 * exp(p.alpha * n) + p.b1) * log(D);
    return exp(p.a3 * exp(p.gamma * n) + p.b3) + exp(p.a2 * exp(p.beta * n) + p.b2 - falling);
  },
  "data-constrained": p => (N, D, U) => {
    const g = (log(p.alpha * p.A) - log(p.beta * p.B)) / (p.alpha + p.beta), enough = g + p.beta / p.alpha * (g + log(U));
    const base = exp(min(enough, log(N))), data = U * (1 - p.R_D * Math.expm1(-(D / U - 1) / p.R_D));
    return p.E + exp(powers(p, base * (1 - p.R_N * Math.expm1(-(N / base - 1) / p.R_N)), data));
  },
  "additive-penalty": p => (N, D, U) => p.E + exp(powers(p, N, D)) + penalty(p, p.kappa, N, D, U),
};
const limit = (p, N, D, L_T, own) => L_T + exp(-p.kappa * exp((log(L_T) - log(own)) / p.f1) + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
/* Laws of students of (N_S, D_S, L_T, U_S), given the supervised law of the student. */
const TAUGHT = {
  distillation: (p, own) => (N, D, L_T, U) => {
    const inner = (log(L_T) - log(own(N, D, U)) - log(p.d1)) / p.f1;
    return L_T + exp(-p.c1 * p.f1 * logaddexp(0, inner) + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
  },
  "distillation-limit": (p, own) => (N, D, L_T, U) => limit(p, N, D, L_T, own(N, D, U)),
  overtaking: (p, own) => (N, D, L_T, U) => {
    const ratio = log(L_T) - log(own(N, D, U)), gate = -p.kappa * exp(ratio / p.f1);
    return L_T * exp(p.w * Math.expm1(gate) * ratio) + exp(gate + p.gamma * powers(p, N, D) - p.c0 * log(L_T));
  },
  "distillation-unique": (p, own) => (N, D, L_T, U) => limit(p, N, D, L_T, own(N, D, U)) + penalty(p, p.eta, N, D, U),
};
const READS_UNIQUE = ["data-constrained", "additive-penalty", "distillation-unique"];

/* Repeated text. `unique` is how many tokens of teacher and student are distinct; a law that does not read it sees the
   effective tokens, one that does may stop reading where more would hurt. */
const UNLIMITED = 1e30, DECAY = 15.387756, REPEATS = [0, ...geomspace(0.05, 2048, 31)];
let unique = UNLIMITED;
/* Where sizes and tokens are searched, by the student's size, as in distill/laws/planning/planner.py. */
let bounds = {low: 1e6, high: 1e17};
function ask({N_S, unique: distinct = UNLIMITED}) {
  unique = distinct;
  bounds = {low: min(1e6, N_S / 1e3), high: 1e17};
}
const effective = D => D > unique ? unique * (1 + DECAY * (1 - exp(-(D / unique - 1) / DECAY))) : D;
function stopped(loss, D) {
  let least = loss(D);
  for (const repeats of REPEATS) {
    const stop = unique * (1 + repeats);
    if (stop >= D) break;
    least = min(least, loss(stop));
  }
  return least;
}
const alone = (form, of) => READS_UNIQUE.includes(form)
  ? (N, D) => D > unique ? stopped(d => of(N, d, min(d, unique)), D) : of(N, D, D) : (N, D) => of(N, effective(D));
const taught = (form, of) => READS_UNIQUE.includes(form)
  ? (N, D, L_T) => D > unique ? stopped(d => of(N, d, L_T, min(d, unique)), D) : of(N, D, L_T, D) : (N, D, L_T) => of(N, effective(D), L_T);

/* A pair of laws: `own` is the supervised law, `taught` that of students; `useful` the tokens beyond which reading on hurts. */
function pair(form, parameters, inside, below) {
  const raw = ALONE[inside](below), student = TAUGHT[form](parameters, raw);
  return {own: alone(inside, raw), taught: taught(form, student), ownReads: READS_UNIQUE.includes(inside), useful(N, L_T) {
    if (!READS_UNIQUE.includes(form) || unique >= UNLIMITED) return Infinity;
    const D = [0, ...geomspace(1e-2, 1e4, 600)].map(r => unique * (1 + r)), losses = D.map(d => student(N, d, L_T, min(d, unique)));
    const place = losses.indexOf(min(...losses));
    return place < D.length - 1 ? D[place] : Infinity;
  }};
}

/* The law of the page, or of the file that a reader dropped on it: `current` is the pair itself, `forms` the same and the other
   forms of its runs, each with its resampled pairs. */
let law, current, forms;
const supervised = (N, D) => current.own(N, D), distillation = (N, D, L_T) => current.taught(N, D, L_T);
const F = N => 2 * N * (1 + law.flops[0] * N ** (-1 / 3) + law.flops[1] * N ** (-2 / 3));
/* What `work` returns with another pair of laws in place of the page's. */
function under(other, work) {
  const before = current;
  current = other;
  try { return work(); } finally { current = before; }
}
const at = (columns, r) => Object.fromEntries(Object.entries(columns).map(([name, values]) => [name, values[r]]));
function resampled({distillation: {form, supervised: inside}, draws}) {
  if (!draws) return [];
  const [first] = Object.values(draws.distillation);
  return first.map((_, r) => pair(form, at(draws.distillation, r), inside.form, at(draws.supervised, r)));
}
function use(next) {
  law = next;
  forms = [next, ...next.others].map(one => {
    const {form, parameters, supervised: inside} = one.distillation;
    return {name: form, pair: pair(form, parameters, inside.form, inside.parameters), draws: resampled(one)};
  });
  current = forms[0].pair;
}

/* A law file of `distill fit`, as the data of this page: what distill/report/law/planner_page.py makes of it. */
const first = JSON.parse(document.getElementById("law").textContent);
const SIZES = [1e8, 1e11], LOSSES = [1.6, 2.8], BUDGETS = [1e19, 1e25], ANY = [0, 1e30];
function fromFile(tree, name) {
  const fail = why => { throw new Error(`${name}: ${why}`); };
  const numbers = values => Object.values(values ?? {}).every(v => typeof v == "number" && isFinite(v));
  if (typeof tree?.form != "string" || !tree.parameters) fail("wanted a law as `distill fit --out` writes it");
  const borrowed = tree.form in ALONE;
  if (!borrowed && !(tree.form in TAUGHT)) fail(`the page knows laws of the forms ${[...Object.keys(TAUGHT), ...Object.keys(ALONE)].join(", ")}; got ${tree.form}`);
  const inside = borrowed ? tree : tree.supervised;
  if (!inside) fail("wanted a law of students with its supervised law inside, as `distill fit --out` writes it");
  if (!(inside.form in ALONE)) fail(`the page knows supervised laws of the forms ${Object.keys(ALONE).join(", ")}; got ${inside.form}`);
  if (!numbers(tree.parameters) || !numbers(inside.parameters)) fail("parameters are damaged; wanted finite numbers");
  const main = borrowed ? borrowing(tree) : students(tree, inside), failure = (tree.bootstrap?.failed ?? 0) / max(tree.bootstrap?.resamples ?? 1, 1);
  const others = (main.draws && tree.alternatives || []).map(other => borrowed ? borrowing(other) : students(other, inside));
  const assessed = entry => entry?.factor === undefined ? null : entry;
  const below = assessed(borrowed ? tree.predictions : tree.supervised_fit?.predictions), calibration = borrowed ? null : assessed(tree.predictions);
  return {name, ...main, supervised: {form: inside.form, parameters: inside.parameters}, others: main.draws ? others : [], failure,
    calibration: main.draws ? calibration : null, below: main.draws ? below : null, predictions: main.draws ? said(calibration ?? below) : "",
    caveats: caveats(main, inside, borrowed), doubts: doubts(main, failure, borrowed || Boolean(tree.draws?.supervised)), ...ranges(tree, borrowed, inside)};
}
const said = entry => entry ? `${entry.kind ?? ""}: ${entry.message ?? ""}` : first.words.not_assessed;
const students = (tree, inside) => ({distillation: {form: tree.form, parameters: tree.parameters, supervised: {form: inside.form, parameters: inside.parameters}},
  draws: tree.draws ? stacked(tree.parameters, inside.parameters, tree.draws, tree.draws.supervised) : null});
/* A supervised law inside of the paper's law of students; where it reads unique tokens, of the limit form with the same penalty. */
function borrowing(tree) {
  const reads = READS_UNIQUE.includes(tree.form), {c1, d1, ...kept} = first.paper, p = tree.parameters;
  const more = {kappa: first.paper_kappa, P: p.P ?? 1e-30, delta: p.delta ?? 1, eta: p.kappa ?? 0};
  const distillation = {form: reads ? "distillation-unique" : "distillation", parameters: reads ? {...kept, ...more} : first.paper, supervised: {form: tree.form, parameters: p}};
  const columns = tree.draws && reads ? {P: tree.draws.P, delta: tree.draws.delta, eta: tree.draws.kappa} : {};
  return {distillation, draws: tree.draws ? stacked(distillation.parameters, p, columns, tree.draws) : null};
}
/* The draws of both laws as columns of one length; what was not resampled is repeated. */
function stacked(parameters, inside, own, below) {
  const count = max(...[...Object.values(own), ...Object.values(below ?? {})].filter(Array.isArray).map(values => values.length));
  const fill = (values, columns) => Object.fromEntries(Object.entries(values).map(([name, value]) => [name, columns?.[name] ?? Array(count).fill(value)]));
  return {distillation: fill(parameters, own), supervised: fill(inside, below)};
}
const same = (one, other) => Object.entries(one).every(([name, value]) => other[name] === value);
function caveats(main, inside, borrowed) {
  if (borrowed) return [first.words.borrowed];
  return inside.form == "supervised" && same(first.paper_supervised, inside.parameters) ? [first.words.papers] : [];
}
function doubts(main, failure, staged) {
  if (!main.draws) return [];
  if (failure > first.most_failed) return [`${Math.round(100 * failure)}% ${first.words.failed}`];
  return staged ? [] : [first.words.known];
}
/* Where the runs are, and what the sliders and charts span (decimal logarithms). */
function ranges(tree, borrowed, inside) {
  const names = borrowed ? {N_S: "N", D_S: "D", N_T: "N", D_T: "D"} : {N_S: "N_S", D_S: "D_S", L_T: "L_T", N_T: "N_T", D_T: "D_T"};
  const region = tree.region && Object.fromEntries(["N_S", "D_S", "L_T", "N_T", "D_T"].map(k => [k, tree.region[names[k]] ?? ANY]));
  const flops = tree.flops ?? first.paper_flops, own = N => 2 * N * (1 + flops[0] * N ** (-1 / 3) + flops[1] * N ** (-2 / 3));
  const own_loss = ALONE[inside.form](inside.parameters), ends = r => [own_loss(r.N_S[1], r.D_S[1], r.D_S[1]), own_loss(r.N_S[0], r.D_S[0], r.D_S[0])];
  let [sizes, teachers, losses, compute] = [SIZES, SIZES, LOSSES, BUDGETS];
  if (region) {
    const taught = region.N_T[1] >= 1e30 ? region.N_S : region.N_T;
    [sizes, teachers] = [[region.N_S[0] / 2, region.N_S[1] * 10], [taught[0] / 2, taught[1] * 10]];
    losses = (region.L_T[1] >= 1e30 ? ends(region) : region.L_T).map((x, i) => x * [0.9, 1.05][i]);
    compute = [3 * own(region.N_S[0]) * region.D_S[0], 300 * own(region.N_S[1]) * region.D_S[1]];
  }
  const span = ends => ends.map(Math.log10), middle = ([a, b]) => [a, b, a + (b - a) / 3].map(x => Math.round(100 * x) / 100);
  return {flops, region: region ?? null, ranges: {compute: span(compute), L_T: losses},
    sliders: {N_S: middle(span(sizes)), compute: middle(span(compute)), N_T: middle(span(teachers)),
      L_T: [losses[0], losses[1], Math.round(50 * (losses[0] + losses[1])) / 100]}};
}
