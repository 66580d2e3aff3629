"use strict";
/* The address `#run=NAME` opens the curve of a run beside that of its supervised twin. */
(() => {
  const dialog = document.getElementById("run-dialog"), source = document.getElementById("run-curves");
  if (!dialog) return;
  const figure = dialog.querySelector("figure");
  let known = null;
  const series = (run, label, color, line) => ({label, color, line, marker: "", size: 4, width: 1.6, alpha: 1, hollow: false, named: true,
    starts: [], x: run.tokens, y: run.losses, low: [], high: [], left: [], right: [], facts: {}});
  function open() {
    const name = decodeURIComponent(location.hash).match(/^#run=(.+)$/)?.[1];
    if (!name) return;
    known ??= JSON.parse(source.textContent);
    const run = known.runs[name];
    if (!run) return;
    const twin = known.runs[run.twin], {blue, ink, orange} = known.colours, all = [series(run, run.name, blue, "-")];
    if (twin) all.push(series(twin, `supervised twin: ${twin.name}`, ink, "--"));
    const ends = [run, twin].filter(Boolean).map(r => r.tokens.at(-1));
    if (run.L_T !== null) all.push({...series(run, "its teacher's loss", orange, ":"), x: [run.tokens[0], Math.max(...ends)], y: [run.L_T, run.L_T]});
    const settled = [run, twin].filter(Boolean).flatMap(r => r.losses.slice(Math.floor(r.losses.length / 5))).filter(v => v !== null);
    const low = Math.min(...settled, run.L_T ?? Infinity), high = Math.max(...settled, run.L_T ?? -Infinity), room = 0.06 * (high - low) || 0.1;
    document.getElementById("run-title").textContent = run.name;
    document.getElementById("run-facts").textContent = run.facts + (twin ? `; its twin ends at ${twin.loss.toFixed(4)}` : "; there is no supervised run of this size and text");
    if (!dialog.open) dialog.showModal();
    charts.show(figure, {name: `run-${name}`, columns: 1, shared: false, height: 3.6, note: "", panels: [{title: "", weight: 1, notes: [], shades: [],
      x: {label: "tokens seen", log: true, lim: null, ticks: [], count: true}, series: all,
      y: {label: "training loss (nats per token)", log: false, lim: [low - room, high + room], ticks: [], count: false}}]});
  }
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  addEventListener("hashchange", open);
  open();
})();
