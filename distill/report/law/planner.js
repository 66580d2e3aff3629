"use strict";
/* The planner's page: what is typed, what is shown. The laws are in planner_laws.js, the search in planner_search.js, intervals and
   warnings in planner_doubt.js. */
const NAMES = {best_case: "best case", teacher_inference: "teacher inference", teacher_pretraining: "teacher pretraining",
  pretraining_and_inference: "pretraining and inference"};
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
const FLOPS = /^(flops?)?$/i, HOURS = /^((gpu|accelerator|chip|tpu)?[- ]?h(ours?|rs?)?)$/i, DAYS = /^d(ays?)?$/i;
const MONEY = {USD: /^(\$|usd|dollars?)$/i, EUR: /^(\u20ac|eur|euros?)$/i};
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
function whole(id, name) {
  const value = positive(id, name);
  if (value % 1) throw {id, why: `${name}: got "${$(id).value}", wanted a whole number such as ${EXAMPLES[id]}`};
  return value;
}
const EXAMPLES = {N_S: "1.5B", budget: "1e22, 20K GPU-hours, $50K or 14 days", N_T: "7B", L_T: "2.1", m: "4", unique: "20B", mfu: "40", hourly: "3.99", accelerators: "64"};
/* FLOPs of a budget: hours times peak times the share of it that training reaches, as distill/laws/planning/budget.py has it. */
function bought(prices) {
  const [value, unit] = quantity($("budget").value), hour = 3600 * prices.peak * prices.mfu;
  const wrong = why => { throw {id: "budget", why}; };
  if (!(value > 0 && isFinite(value))) wrong(`budget: got "${$("budget").value}", wanted a positive number such as ${EXAMPLES.budget}`);
  if (FLOPS.test(unit)) return value;
  const chip = /^(.*\S)[- ]h(?:ours?|rs?)?$/i.exec(unit)?.[1].toLowerCase();
  if (HOURS.test(unit) || chip == prices.name) return value * hour;
  if (chip in law.chips) wrong(`budget: in hours of ${chip}, where the chip is ${prices.name}; choose ${chip} below`);
  if (DAYS.test(unit)) return value * 24 * prices.accelerators * hour;
  const currency = Object.keys(MONEY).find(name => MONEY[name].test(unit));
  if (!currency) wrong(`budget: "${unit}" is no unit; wanted FLOPs, GPU-hours, dollars or days`);
  if (!(prices.hourly > 0)) wrong(`budget: there is no list price of ${prices.name}; type what an hour costs`);
  /* A price that was typed is in the money of the budget; a list price in another is not converted. */
  if (prices.typed) prices.currency = currency;
  else if (currency != prices.currency) wrong(`budget: in ${currency}, where the list price of ${prices.name} is in ${prices.currency}; type what an hour costs in ${currency}`);
  return value / prices.hourly * hour;
}
function priced() {
  const name = $("chip").value, [peak, hourly, currency, source] = law.chips[name];
  const typed = $("hourly").value.trim() != "", mfu = positive("mfu", "MFU");
  if (mfu > 100) throw {id: "mfu", why: `MFU: got "${$("mfu").value}", wanted a share of the peak, at most 100`};
  return {name, peak, currency, typed, source: typed ? "as given" : source, hourly: typed ? positive("hourly", "price") : hourly, mfu: mfu / 100,
    accelerators: whole("accelerators", "accelerators")};
}

/* The page. */
const $ = id => document.getElementById(id);
const DASH = {best_case: "-", teacher_inference: "--", teacher_pretraining: "-.", pretraining_and_inference: "-"};
const COLOUR = {best_case: "blue", teacher_inference: "orange", teacher_pretraining: "green", pretraining_and_inference: "purple", supervised: "ink"};
const cache = new Map();
const FIELDS = ["N_S", "budget", "scenario", "teacher", "N_T", "L_T", "m", "store", "unique", "chip", "mfu", "hourly", "accelerators"];
const percent = x => (100 * x).toFixed(x < 0.1 ? 1 : 0) + "%";
const money = (value, prices) => prices.hourly > 0 ? `${Math.round(value * prices.hourly).toLocaleString("en-US")} ${prices.currency}` : "unknown";

function read() {
  const prices = priced(), given = $("teacher").value == "given";
  return {N_S: positive("N_S", "student size"), compute: bought(prices), scenario: $("scenario").value, m: whole("m", "students"),
    store: $("store").checked, unique: $("unique").value.trim() ? positive("unique", "distinct tokens") : UNLIMITED, given: given ? {N_T: positive("N_T", "teacher size"), L_T: positive("L_T", "teacher loss")} : null, prices};
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
  const names = Object.entries(sure?.forms ?? {}), under = names.length > 1 ? ` (under ${names.map(([name, weight]) => `${name} ${(100 * weight).toFixed(0)}%`).join(", ")})` : "";
  return text + (sure ? `; distillation wins with probability ${sure.probability.toFixed(2)}${under}` : "") + ` (${asked.scenario}).`;
}

function show() {
  document.querySelectorAll(".given").forEach(e => { e.hidden = $("teacher").value != "given"; });
  document.querySelectorAll("[aria-invalid]").forEach(e => e.removeAttribute("aria-invalid"));
  $("problem").textContent = "";
  stop();
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
  work(rest(found, asked, sure));
}
/* What takes longer: the curves, then where supervised training catches up, then the intervals of the optimum. */
function* rest(found, asked, sure) {
  yield* draw(found, asked, sure);
  const crossover = yield* crossoverCompute(asked), catches = within => crossover ? general(crossover) + " FLOPs" + within : "never";
  $("crossover").textContent = catches("");
  const interval = yield* intervals(found, asked, crossover), span = ends => ends ? ` [${ends.map(x => general(x)).join(", ")}]` : "";
  numbers(found, asked, {...sure, ...interval});
  $("crossover").textContent = catches(span(interval.crossover_compute));
  $("numbers").dataset.state = "done";
}
/* Runs a generator in slices, so that the page answers meanwhile; a newer one takes its place. */
function stop() { work.turn = (work.turn ?? 0) + 1; }
function work(steps) {
  stop();
  const mine = work.turn, slice = () => {
    const until = performance.now() + 25;
    let over = mine != work.turn;
    while (!over && performance.now() < until) over = steps.next().done;
    if (!over) setTimeout(slice);
  };
  delete $("numbers").dataset.state;
  setTimeout(slice, 60);
}

function bar(bill) {
  const total = bill.student + bill.logits + bill.teacher;
  const parts = [["student training", bill.student, "blue"], ["teacher's logits", bill.logits, "orange"], ["teacher's training", bill.teacher, "green"]].filter(p => p[1] > 0);
  $("bar").replaceChildren(...parts.map(([, part, color]) => charts.make("span", {class: `part-${color}`, style: `width:${100 * part / total}%`})));
  $("bar").setAttribute("aria-label", parts.map(([name, part]) => `${name} ${percent(part / total)}`).join(", "));
  $("split").replaceChildren(...parts.map(([name, part, color]) => charts.make("li", {}, charts.make("i", {class: `part-${color}`}), `${name} ${percent(part / total)}`)));
}

/* The numbers with the intervals that are known so far. */
function numbers(found, asked, sure) {
  const within = (name, show = engineering) => sure?.[name] ? ` [${sure[name].map(show).join(", ")}]` : "", loss = x => x.toFixed(4), {prices} = asked;
  const hours = asked.compute / (prices.peak * prices.mfu * 3600);
  const rows = [["student tokens", engineering(found.D_S) + within("D_S")], ["teacher size", engineering(found.N_T) + within("N_T")],
    ["teacher tokens", asked.given ? "-" : found.D_T < 1e16 ? engineering(found.D_T) + within("D_T") : "unlimited"],
    ["teacher loss", loss(found.L_T) + within("L_T", loss)], ["student loss", loss(found.L_S) + within("L_S", loss)],
    ["supervised loss", loss(found.supervised_L) + within("supervised_L", loss)],
    ["accelerator-hours", general(hours, 4)], [`days on ${general(prices.accelerators, 6)}`, general(hours / 24 / prices.accelerators)],
    ["price", money(hours, prices)],
    ["supervised catches up with this teacher at", found.crossover_tokens ? engineering(found.crossover_tokens) + " tokens" + within("crossover_tokens") : "never"],
    ["supervised catches up with this scenario at", "..."]];
  $("numbers").replaceChildren(...rows.map(([name, value], i) => charts.make("tr", {},
    charts.make("th", {scope: "row"}, name), charts.make("td", i == rows.length - 1 ? {id: "crossover"} : {}, value))));
  $("trusted").replaceChildren(...trusted(sure).map(text => charts.make("span", {}, text, charts.make("br", {}))));
}
/* How far predictions may be trusted, in the words of `distill plan`. */
function trusted(sure) {
  if (!law.predictions) return [];
  const said = `Predictions: ${law.predictions}.`;
  if (!sure?.plain) return [said, "90% intervals: bootstrap alone, without the law's own error."];
  const alone = [["student loss", "L_S"], ["supervised loss", "supervised_L"]].map(([name, key]) => `${name} [${sure.plain[key].map(x => x.toFixed(4)).join(", ")}]`);
  return [said, "90% intervals of losses: calibrated by rolling forward, of a new run; all others: bootstrap.",
    `The bootstrap alone, without the law's own error: ${alone.join(", ")}.`];
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
function* curves(asked) {
  const name = JSON.stringify([asked.N_S, asked.m, asked.store, asked.unique, asked.given]);
  if (!cache.has(name)) {
    const budgets = linspace(...law.ranges.compute, 41).map(c => 10 ** c), lines = {};
    for (const scenario of Object.keys(WEIGHTS)) {
      lines[scenario] = [];
      for (const compute of budgets) { lines[scenario].push(outcome({...asked, compute, scenario})); yield; }
    }
    if (cache.size > 40) cache.clear();
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
function* draw(found, asked, sure) {
  const {budgets, lines} = yield* curves(asked), mine = lines[asked.scenario], color = COLOUR[asked.scenario], shades = outside(asked, budgets, mine);
  const alone = mine.map((p, i) => [budgets[i], p.supervised_L]);
  const all = Object.entries(lines).map(([name, line]) => series(NAMES[name], COLOUR[name], line.map((p, i) => [budgets[i], p.L_S]),
    {line: DASH[name], alpha: name == asked.scenario ? 1 : 0.5, width: name == asked.scenario ? 2.2 : 1.4}));
  all.push(series("supervised", "ink", alone, {line: ":"}), dot(color, asked.compute, found.L_S));
  show_chart("by_compute", "loss", axis("compute (FLOPs)", true), axis(LOSS), all, shades);
  const gain = mine.map(p => p.L_S - p.supervised_L), rows = mine.map((p, i) => [budgets[i], gain[i]]);
  const ends = [];
  if (sure) for (const p of mine) { ends.push(gainInterval(p, asked)); yield; }
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
}

/* The state in the address, the sentence to share, and a law of one's own. */
const value = id => $(id).type == "checkbox" ? ($(id).checked ? "yes" : "") : $(id).value.trim();
function remember() {
  const state = new URLSearchParams(FIELDS.filter(id => value(id)).map(id => [id, value(id)]));
  if (!location.href.startsWith("about:")) history.replaceState(null, "", "#" + state);
}
/* Fields that the address does not name stay as they are, but those that are empty unless somebody types there. */
function recall() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const id of FIELDS) {
    const text = state.get(id) ?? (["store", "unique", "hourly"].includes(id) ? "" : null);
    if ($(id).type == "checkbox") $(id).checked = text == "yes";
    else if (text !== null && ($(id).tagName != "SELECT" || [...$(id).options].some(o => o.value == text))) $(id).value = text;
  }
}
async function share() {
  const text = `${$("advice").textContent}${[...$("warning").children].map(e => ` Warning: ${e.textContent}.`).join("")} Law: ${law.name}. ${location.href}`;
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
  cache.clear();
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
  addEventListener("hashchange", () => { recall(); show(); });
  if (asked) { history.replaceState(null, "", asked); recall(); show(); }
}
setup();
