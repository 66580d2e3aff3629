"use strict";
/* How sure a plan is, and what it warns of: the arithmetic of distill/laws/planning/intervals.py, planner.py and region.py and of
   distill/laws/uncertainty/calibration.py. */
const DRAWS = 512, FEW = 64, DEVIATE = 1.6449, STANDS_OUT = 0.005;
function percentiles(values) {
  const sorted = Float64Array.from(values).sort(), last = sorted.length - 1;
  return [0.05, 0.95].map(q => {
    const place = q * last, low = Math.floor(place);
    return sorted[low] + (place - low) * (sorted[min(low + 1, last)] - sorted[low]);
  });
}
/* Halves go to the even number, as Python rounds. */
const rounded = x => x % 1 == 0.5 ? 2 * Math.round(x / 2) : Math.round(x);
const repeated = (values, count) => Array.from({length: count}, (_, i) => values[i % values.length]);
const portion = weight => max(rounded(DRAWS * weight), 1);

/* How far inputs lie beyond the runs, in logarithms of compute: distill/laws/uncertainty/edges.py. */
function beyond({ranges, budgets}, inputs) {
  const names = Object.keys(ranges), amount = name => "NDCx".includes(name[0]), known = names.map((name, i) => [name, inputs[i]]).slice(0, inputs.length);
  const compute = known.filter(([name]) => amount(name)).slice(0, 2).reduce((sum, [, x]) => sum + log(x), 0);
  return known.reduce((far, [name, x]) => {
    const [low, high] = ranges[name], outside = max(log(x) - high, low - log(x), 0);
    return max(far, outside * (amount(name) ? 1 : (budgets[1] - budgets[0]) / max(high - low, 1e-3)));
  }, max(compute - budgets[1], 0));
}
/* Log losses of a run: the forms' resamples moved apart as rolling forward asks. `normals` are those of Python's generator. */
function moved({factor, growth, apart = factor, noise, weights, edges}, logs, resamples, inputs, normals) {
  const centre = weights.reduce((sum, weight, i) => sum + weight * logs[i], 0), wider = sqrt(1 + (growth * beyond(edges, inputs)) ** 2);
  let next = 0;
  return resamples.flatMap((each, i) => each.map(x => {
    const error = x - logs[i] + noise[i] * normals[next++];
    return centre + apart / DEVIATE * (logs[i] - centre) + factor / DEVIATE * wider * error;
  }));
}

/* [student's, supervised] losses of this very plan and its alternative as drawn, those of the bootstrap alone, and the forms. */
function losses(found, given) {
  const {calibration, below} = law, {N_S, supervised_D} = found, D_S = min(found.D_S, bounds.high), trusted = Boolean(calibration || below);
  const averaged = calibration ? forms : forms.slice(0, 1), weights = calibration ? calibration.weights : [1];
  const parts = averaged.map((form, i) => {
    const draws = form.draws.slice(0, i ? max(rounded(DRAWS * weights[i]), 8) : DRAWS);
    return {taught: draws.map(({own, taught}) => taught(N_S, D_S, given || !isFinite(found.N_T) ? found.L_T : own(found.N_T, found.D_T))),
      alone: draws.map(({own}) => own(N_S, supervised_D))};
  });
  const plain = [parts[0].taught, parts[0].alone], under = Object.fromEntries(averaged.map(({name}, i) => [name, weights[i]]));
  if (!trusted) return {draws: plain, plain: null, under: {}};
  let [student, own] = ["taught", "alone"].map(kind => parts.flatMap((part, i) => repeated(part[kind], portion(weights[i]))));
  if (below) {
    const several = below.weights.length > 1, some = several ? forms.slice(0, below.weights.length) : [];
    const logs = several ? some.map(({pair}) => log(pair.own(N_S, supervised_D))) : [log(supervised(N_S, supervised_D))];
    const each = several ? some.map(({draws}, i) => repeated(draws.slice(0, DRAWS), portion(below.weights[i])).map(one => log(one.own(N_S, supervised_D)))) : [own.map(log)];
    own = moved(below, logs, each, [N_S, effective(supervised_D)], law.normals[0]).map(exp);
  }
  if (calibration) {
    const logs = averaged.map(({pair}) => log(pair.taught(N_S, D_S, found.L_T))), each = parts.map((part, i) => repeated(part.taught, portion(weights[i])).map(log));
    student = moved(calibration, logs, each, [N_S, effective(D_S), found.L_T], law.normals[1]).map(exp);
  }
  const count = max(student.length, own.length);
  return {draws: [repeated(student, count), repeated(own, count)], plain, under};
}
const known = () => forms[0].draws.length && law.failure <= law.most_failed;
function doubt(found, asked) {
  if (!known()) return null;
  ask(asked);
  const {draws: [student, own], plain, under} = losses(found, asked.given);
  return {L_S: percentiles(student), supervised_L: percentiles(own), probability: own.filter((x, r) => x > student[r]).length / own.length,
    plain: plain && {L_S: percentiles(plain[0]), supervised_L: percentiles(plain[1])}, forms: under};
}
/* The interval of distilling minus pretraining. */
function gainInterval(found, asked) {
  const {draws: [student, own]} = losses(found, asked.given);
  return percentiles(student.map((x, r) => x - own[r]));
}

/* Intervals of the optimum itself and of the crossovers, recomputed under each resampled law; pauses after each. */
function* intervals(found, asked, crossover_compute) {
  ask(asked);
  const compute = found.bill.student + found.bill.logits + found.bill.teacher, [logits, training] = shared(asked.scenario, asked.m ?? 1, asked.store);
  const interval = {}, enough = (name, values) => {
    const finite = values.filter(x => x !== null);
    if (finite.length > values.length / 2) interval[name] = percentiles(finite);
  };
  if (!known()) return interval;
  const few = forms[0].draws.slice(0, FEW);
  if (crossoverTokens(asked.N_S, found.L_T)) enough("crossover_tokens", few.map(one => under(one, () => crossoverTokens(asked.N_S, found.L_T))));
  if (!asked.given) {
    const splits = [];
    for (const one of forms[0].draws.slice(0, DRAWS)) { splits.push(under(one, () => solve(asked.N_S, compute, logits, training))); yield; }
    for (const name of ["N_T", "D_T", "D_S", "L_T"]) if (splits.every(split => isFinite(split[name]))) interval[name] = percentiles(splits.map(split => split[name]));
  }
  if (crossover_compute) {
    const budgets = asked.given ? null : geomspace(crossover_compute / 100, crossover_compute * 100, 24), places = [];
    for (const one of few) {
      places.push(under(one, () => finish(asked.given ? crossoverCompute(asked) : near(asked, budgets))));
      yield;
    }
    enough("crossover_compute", places);
  }
  return interval;
}
function* near(asked, budgets) { return interpolate(budgets, yield* gains(asked, budgets)); }
/* What a generator returns, without its pauses. */
function finish(steps) {
  let step = steps.next();
  while (!step.done) step = steps.next();
  return step.value;
}

/* The warnings of distill/laws/planning/planner.py and region.py. */
function warnings(found, asked) {
  ask(asked);
  const out = [], own = supervised(asked.N_S, found.D_S), {low, high} = bounds, [logits, training] = WEIGHTS[asked.scenario];
  const free = !asked.given && logits > 0 && !training, value = name => name == "L_T" ? found[name].toFixed(3) : engineering(found[name]);
  if (found.L_T > own) out.push(`the teacher (L_T ${found.L_T.toFixed(3)}) is worse than the student alone on the same tokens (${own.toFixed(3)})`);
  const useful = current.useful(asked.N_S, found.L_T);
  if (1.5 * useful <= found.D_S) out.push(`${general(found.D_S / unique)} epochs of ${engineering(unique)} distinct tokens are more than this law finds `
    + `useful: stop at about ${engineering(useful)} (the loss is that); the rest of the compute buys nothing`);
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
  return [...law.caveats, ...out, ...law.doubts];
}
window.planner = {plan, doubt, warnings, solve, intervals: (...x) => finish(intervals(...x)), crossoverCompute: asked => finish(crossoverCompute(asked)), supervised: (...x) => supervised(...x),
  distillation: (...x) => distillation(...x), F, crossoverTokens, fromFile, use};
