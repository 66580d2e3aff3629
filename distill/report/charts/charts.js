"use strict";
/* The charts of a page. `charts.mount(figure)` draws the description inside a figure once the figure comes into view. */
const charts = (() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const drawn = new Set();
  let printing = false;
  const tone = pair => pair[dark.matches && !printing ? 1 : 0];
  const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const make = (tag, attributes = {}, ...inside) => {
    const e = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) e.setAttribute(name, value);
    e.append(...inside);
    return e;
  };

  /* Numbers and ticks. */
  function si(x) {
    const a = Math.abs(x);
    for (const [scale, suffix] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "K"]])
      if (a >= scale && a < 1e15) return Number((x / scale).toPrecision(3)) + suffix;
    return short(x, 3);
  }
  function short(x, digits = 5) {
    if (x === 0) return "0";
    const a = Math.abs(x);
    return a >= 1e6 || a < 1e-4 ? Number(x.toPrecision(3)).toExponential().replace("e+", "e") : String(Number(x.toPrecision(digits)));
  }
  const text = (value, axis) => axis.count ? si(value) : short(value);
  function ticks(low, high, log, most) {
    const out = [], slack = 1e-9;
    if (log && high / low > 4) {
      const first = Math.floor(Math.log10(low) - slack), last = Math.ceil(Math.log10(high));
      const inside = (steps, every) => {
        const found = [];
        for (let k = first; k <= last; k += every) for (const m of steps) {
          const value = Number((m * 10 ** k).toPrecision(2));
          if (value >= low * (1 - slack) && value <= high * (1 + slack)) found.push(value);
        }
        return found;
      };
      for (const steps of [[1, 2, 5], [1, 3], [1]]) if (inside(steps, 1).length <= most + 0.5) return inside(steps, 1);
      return inside([1], Math.ceil((last - first) / most));
    }
    const rough = (high - low) / Math.max(most, 1), unit = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map(m => m * unit).find(s => s >= rough * (1 - slack));
    for (let k = Math.ceil(low / step - slack); k * step <= high + slack * step; k++) out.push(Number((k * step).toPrecision(12)));
    return out;
  }

  /* The extent of what is shown on an axis: its limits where the description has them, else that of the points. */
  function extent(panels, which, log) {
    const given = panels.find(p => p[which].lim);
    if (given && (!log || given[which].lim[0] > 0)) return given[which].lim;
    const ends = (columns, bound = x => x) => {
      let low = Infinity, high = -Infinity;
      for (const panel of panels) for (const s of panel.series) for (const values of columns(s))
        for (const value of values) if (value !== null && (!log || value > 0)) { const x = bound(value); if (x < low) low = x; if (x > high) high = x; }
      return [low, high];
    };
    let [low, high] = ends(s => which == "y" && !s.line ? [s.y, s.low, s.high] : [s[which]]);
    if (!(low <= high)) return [log ? 0.1 : 0, 1];
    if (which == "y") {
      /* A band is shown whole unless it is wider than the curves by far, which would then be flat. */
      const f = log ? Math.log : x => x, g = log ? Math.exp : x => x, room = 0.5 * (f(high) - f(low));
      const [a, b] = ends(s => s.line ? [s.low, s.high] : [], x => g(Math.min(Math.max(f(x), f(low) - room), f(high) + room)));
      [low, high] = [Math.min(low, a), Math.max(high, b)];
    }
    if (log) { const room = Math.max((high / low) ** 0.05, 1.02); return [low / room, high * room]; }
    const room = (high - low) * 0.06 || Math.abs(high) * 0.06 || 1;
    return [low - room, high + room];
  }
  /* Whether a logarithmic axis can show a chart: no value below 0. What is at 0, a run before its first step, it leaves out. */
  const positive = (chart, which) => chart.panels.every(p => !p[which].ticks.length || p[which].log)
    && chart.panels.every(p => p.series.every(s => s[which].every(v => v === null || v >= 0) && (s[which].some(v => v > 0) || !s[which].length)));

  const DASH = {"-": [], "--": [6, 4], ":": [2, 3], "-.": [8, 3, 2, 3]};
  const SIDES = {s: [4, Math.PI / 4], D: [4, 0], "^": [3, -Math.PI / 2], v: [3, Math.PI / 2], "<": [3, Math.PI], ">": [3, 0],
    p: [5, -Math.PI / 2], h: [6, 0], H: [6, 0]};
  function marker(context, kind, x, y, r) {
    context.beginPath();
    if (kind == "o" || kind == ".") context.arc(x, y, r, 0, 2 * Math.PI);
    else if ("+xPX_|".includes(kind)) {
      const [a, b] = kind == "x" || kind == "X" ? [r, r] : [r, 0], [c, d] = kind == "x" || kind == "X" ? [r, -r] : [0, r];
      if (kind != "|") { context.moveTo(x - a, y - b); context.lineTo(x + a, y + b); }
      if (kind != "_") { context.moveTo(x - c, y - d); context.lineTo(x + c, y + d); }
    } else {
      const star = kind == "*", [n, turn] = star ? [10, -Math.PI / 2] : SIDES[kind] || [4, 0];
      for (let i = 0; i < n; i++) {
        const radius = (star ? (i % 2 ? 0.6 : 1.4) : 1.25) * r, angle = turn + 2 * Math.PI * i / n;
        context[i ? "lineTo" : "moveTo"](x + radius * Math.cos(angle), y + radius * Math.sin(angle));
      }
      context.closePath();
    }
  }
  const parts = s => s.starts.length ? s.starts.map((a, i) => [a, s.starts[i + 1] ?? s.x.length]) : [[0, s.x.length]];

  /* One series into the frame of a plot; X and Y give pixels of the canvas. */
  function paint(context, s, X, Y, ratio, ground) {
    const color = tone(s.color), shown = i => s.x[i] !== null && s.y[i] !== null && isFinite(X(s.x[i])) && isFinite(Y(s.y[i]));
    Object.assign(context, {strokeStyle: color, fillStyle: color, lineWidth: s.width * 1.2 * ratio, globalAlpha: s.alpha});
    if (s.low.length && s.line) {
      context.globalAlpha = 0.18;
      context.beginPath();
      s.x.forEach((x, i) => context[i ? "lineTo" : "moveTo"](X(x), Y(s.high[i])));
      for (let i = s.x.length - 1; i >= 0; i--) context.lineTo(X(s.x[i]), Y(s.low[i]));
      context.fill();
      context.globalAlpha = s.alpha;
    } else if (s.low.length) {
      context.beginPath();
      s.x.forEach((x, i) => { context.moveTo(X(x), Y(s.low[i])); context.lineTo(X(x), Y(s.high[i])); });
      context.stroke();
    }
    if (s.left.length) {
      context.globalAlpha = 0.55;
      context.lineWidth = 4 * ratio;
      context.beginPath();
      s.y.forEach((y, i) => { context.moveTo(X(s.left[i]), Y(y)); context.lineTo(X(s.right[i]), Y(y)); });
      context.stroke();
      context.globalAlpha = s.alpha;
      context.lineWidth = s.width * 1.2 * ratio;
    }
    if (s.line) {
      context.setLineDash(DASH[s.line].map(x => x * ratio));
      context.beginPath();
      for (const [a, b] of parts(s)) {
        let open = false;
        for (let i = a; i < b; i++) {
          if (!shown(i)) { open = false; continue; }
          context[open ? "lineTo" : "moveTo"](X(s.x[i]), Y(s.y[i]));
          open = true;
        }
      }
      context.stroke();
      context.setLineDash([]);
    }
    if (s.marker) {
      context.lineWidth = 1.4 * ratio;
      for (let i = 0; i < s.x.length; i++) {
        if (!shown(i)) continue;
        marker(context, s.marker, X(s.x[i]), Y(s.y[i]), s.size * 0.66 * ratio);
        if ("+x_|".includes(s.marker)) context.stroke();
        else { if (s.hollow) { context.fillStyle = ground; context.fill(); context.fillStyle = color; context.stroke(); } else context.fill(); }
      }
    }
    context.globalAlpha = 1;
  }

  function plot(figure, chart, panel, host, kept) {
    const state = figure.state;
    const log = {x: state.log.x ?? panel.x.log, y: state.log.y ?? panel.y.log};
    const family = chart.shared ? chart.panels : [panel];
    const home = {x: extent(family, "x", log.x), y: extent(family, "y", log.y)};
    const view = kept || {x: [...home.x], y: [...home.y]};
    const frame = make("div", {class: "plot", tabindex: "0", role: "application", "aria-roledescription": "chart",
      "aria-label": `${panel.title || chart.name}: ${panel.y.label} over ${panel.x.label}. Arrow keys read the points, plus and minus zoom, 0 resets.`});
    const tip = make("div", {class: "tip", hidden: ""}), ring = make("div", {class: "ring", hidden: ""});
    host.replaceChildren(make("h3", {}, panel.title), frame, tip, ring);
    const height = Math.max(Math.round(92 * chart.height * (panel.weight || 1)), 150);
    let seen = [], at = null;
    const axis = (which, side) => ({
      scale: which, side, label: panel[which].label, labelSize: 20, labelFont: "12px system-ui, sans-serif", font: "11px system-ui, sans-serif",
      stroke: () => style("--soft"), grid: {stroke: () => style("--line"), width: 1, show: !panel[which].ticks.length || which == "x"},
      ticks: {stroke: () => style("--line"), size: 4}, gap: 4,
      size: which == "x" ? 26 : (u, values) => 14 + 6.4 * Math.max(4, ...(values || []).map(v => String(v).length)),
      splits: (u, i, low, high) => panel[which].ticks.length ? panel[which].ticks.map(t => t[0]).filter(v => v >= low && v <= high)
        : ticks(low, high, log[which], which == "x" ? Math.max(u.width / 75, 2) : Math.max(u.height / 45, 2)),
      filter: (u, splits) => splits,
      values: (u, splits) => panel[which].ticks.length ? splits.map(v => panel[which].ticks.find(t => t[0] == v)?.[1] ?? "")
        : splits.map(v => text(v, panel[which])),
    });
    const axes = [axis("x", 2), axis("y", 3)];
    if (panel.notes.length && host.clientWidth > 420) axes.push({...axis("y", 1), label: undefined, grid: {show: false}, ticks: {show: false},
      splits: () => panel.notes.map(n => n[0]), values: () => panel.notes.map(n => n[1]), size: 12 + 6 * Math.max(...panel.notes.map(n => n[1].length))});
    const scale = which => ({time: false, auto: false, distr: log[which] ? 3 : 1, range: () => view[which]});
    const u = new uPlot({
      width: Math.max(host.clientWidth, 200), height, axes, legend: {show: false}, padding: [8, 10, 0, 0],
      scales: {x: scale("x"), y: scale("y")}, series: [{}, {show: false, points: {show: false}}],
      cursor: {points: {show: false}, dataIdx: () => null, drag: {x: true, y: true, uni: 24, setScale: false}},
      hooks: {
        draw: [() => {
          const context = u.ctx, box = u.bbox, ratio = uPlot.pxRatio, ground = style("--ground");
          const place = (which, from, length, flip) => {
            const f = log[which] ? Math.log10 : x => x, [a, b] = view[which].map(f), k = length / (b - a);
            return flip ? value => from + length - (f(value) - a) * k : value => from + (f(value) - a) * k;
          };
          const X = place("x", box.left, box.width), Y = place("y", box.top, box.height, true);
          const clip = room => {
            context.save();
            context.beginPath();
            context.rect(box.left - room, box.top - room, box.width + 2 * room, box.height + 2 * room);
            context.clip();
          };
          clip(0);
          for (const [from, to, words] of panel.shades) {
            Object.assign(context, {fillStyle: style("--soft"), globalAlpha: 0.12});
            context.fillRect(X(from), box.top, X(to) - X(from), box.height);
            Object.assign(context, {globalAlpha: 1, font: `${11 * ratio}px system-ui, sans-serif`, textAlign: "left"});
            if (X(to) - X(from) > context.measureText(words).width + 8 * ratio) context.fillText(words, X(from) + 4 * ratio, box.top + 13 * ratio);
          }
          seen = [];
          for (const s of panel.series) {
            if (state.off.has(s.label)) continue;
            if (!s.line) { context.restore(); clip(5 * ratio); }
            paint(context, s, X, Y, ratio, ground);
            if (!s.line) { context.restore(); clip(0); }
            const n = s.x.length, px = new Float32Array(n), py = new Float32Array(n);
            for (let i = 0; i < n; i++) { px[i] = (X(s.x[i]) - box.left) / ratio; py[i] = (Y(s.y[i]) - box.top) / ratio; }
            seen.push({s, px, py});
          }
          context.restore();
        }],
        setCursor: [() => { if (u.cursor.left >= 0 && !u.select.width) nearest(u.cursor.left, u.cursor.top); else if (u.cursor.left < 0 && document.activeElement != frame) hide(); }],
        setSelect: [() => {
          const {left, top, width, height} = u.select;
          if (width > 6 || height > 6) {
            if (width > 6 && width < u.over.clientWidth) view.x = [u.posToVal(left, "x"), u.posToVal(left + width, "x")];
            if (height > 6 && height < u.over.clientHeight) view.y = [u.posToVal(top + height, "y"), u.posToVal(top, "y")];
            u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
            again();
          }
        }],
      },
    }, [[home.x[0], home.x[1]], [null, null]], frame);
    function again() { hide(); u.batch(() => { u.setScale("x", {min: view.x[0], max: view.x[1]}); u.setScale("y", {min: view.y[0], max: view.y[1]}); }); }
    function reset() { view.x = [...home.x]; view.y = [...home.y]; again(); }
    function zoom(factor) {
      for (const which of ["x", "y"]) {
        const f = log[which] ? Math.log : x => x, g = log[which] ? Math.exp : x => x, [a, b] = view[which].map(f);
        const middle = (a + b) / 2, half = (b - a) / 2 * factor;
        view[which] = [g(middle - half), g(middle + half)];
      }
      again();
    }
    function nearest(left, top) {
      let best = 40 ** 2, found = null;
      for (const one of seen) for (let i = 0; i < one.px.length; i++) {
        const d = (one.px[i] - left) ** 2 + (one.py[i] - top) ** 2;
        if (d < best) { best = d; found = {one, i}; }
      }
      if (found) show(found); else hide();
    }
    function show({one, i}, speak = false) {
      at = {one, i};
      const words = lines(chart, panel, one.s, i), [x, y] = [one.px[i] + u.over.offsetLeft, one.py[i] + u.over.offsetTop];
      tip.replaceChildren(...words.map(([name, value], k) => make("div", {}, ...(k ? [make("span", {}, name), " " + value] : [make("b", {}, value)]))));
      tip.hidden = ring.hidden = false;
      const top = y + frame.offsetTop, room = host.clientWidth - tip.offsetWidth;
      tip.style.left = `${Math.max(Math.min(x + 12, room), 0)}px`;
      tip.style.top = `${top + 14}px`;
      Object.assign(ring.style, {left: `${x}px`, top: `${top}px`, borderColor: tone(one.s.color)});
      if (speak) figure.querySelector("output").value = words.map(([name, value]) => name ? `${name} ${value}` : value).join(", ");
    }
    function hide() { tip.hidden = ring.hidden = true; at = null; }
    frame.addEventListener("keydown", event => {
      const inside = seen.filter(one => one.s.x.length);
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key], turn = {ArrowUp: 1, ArrowDown: -1}[event.key];
      if ((step || turn) && inside.length) {
        let k = at ? Math.max(inside.findIndex(one => one.s == at.one.s), 0) : 0, i = at ? at.i + (step || 0) : 0;
        if (turn && at) { k = (k + turn + inside.length) % inside.length; i = 0; }
        show({one: inside[k], i: Math.max(0, Math.min(i, inside[k].s.x.length - 1))}, true);
      } else if (event.key == "+" || event.key == "=") zoom(1 / 1.5);
      else if (event.key == "-") zoom(1.5);
      else if (event.key == "0" || event.key == "Escape") reset();
      else return;
      event.preventDefault();
    });
    frame.addEventListener("blur", hide);
    u.over.addEventListener("dblclick", reset);
    const resize = new ResizeObserver(() => { if (host.clientWidth && host.clientWidth != u.width) u.setSize({width: host.clientWidth, height}); });
    resize.observe(host);
    const moved = () => ["x", "y"].some(which => view[which].some((end, i) => end != home[which][i])) ? view : null;
    return {view, log, moved, redraw: () => u.redraw(false, true), zoom, reset,
      destroy: () => { resize.disconnect(); u.destroy(); }};
  }

  /* What a reader sees of a point: [name, value], the series first. */
  function lines(chart, panel, s, i) {
    const row = s.starts.length ? s.starts.findLastIndex(a => a <= i) : i, out = [["", s.label]];
    for (const [name, column] of Object.entries(s.facts)) if (column[row] !== "" && column[row] !== null && name != panel.x.label) out.push([name, String(column[row])]);
    out.push([panel.x.label, text(s.x[i], panel.x)], [panel.y.label, text(s.y[i], panel.y)]);
    for (const [a, b] of [[s.low[i], s.high[i]], [s.left[i], s.right[i]]]) if (a < b) out.push(["interval", `[${short(a)}, ${short(b)}]`]);
    return out;
  }

  /* The data as rows: panel, series, x, y, ends of intervals, facts: the columns of the CSV file. */
  function rows(chart) {
    const names = [...new Set(chart.panels.flatMap(p => p.series.flatMap(s => Object.keys(s.facts))))];
    const out = [["panel", "series", "x", "y", "low", "high", "left", "right", ...names]], cell = value => value === undefined || value === null ? "" : value;
    for (const panel of chart.panels) for (const s of panel.series) parts(s).forEach(([a, b], line) => {
      for (let i = a; i < b; i++) {
        const row = s.starts.length ? line : i;
        out.push([panel.title, s.label, s.x[i], s.y[i], s.low[i], s.high[i], s.left[i], s.right[i], ...names.map(n => s.facts[n]?.[row])].map(cell));
      }
    });
    return out;
  }
  const quoted = value => /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
  function save(name, content, type) {
    const link = make("a", {download: name, href: URL.createObjectURL(new Blob([content], {type}))});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function draw(figure, chart, again = true) {
    figure.state ??= {off: new Set(), log: {}, plots: []};
    const state = figure.state, frames = figure.querySelector(".frames");
    const kept = state.plots.map(p => p.moved());
    state.plots.forEach(p => p.destroy());
    state.chart = chart;
    frames.style.setProperty("--columns", Math.min(chart.columns, chart.panels.length));
    const hosts = chart.panels.map(() => make("div", {class: "panel"}));
    frames.replaceChildren(...hosts);
    frames.style.minHeight = "";
    state.plots = chart.panels.map((panel, i) => plot(figure, chart, panel, hosts[i], again && kept[i]));
    const labels = new Map();
    for (const s of chart.panels.flatMap(p => p.series)) if (s.named && !labels.has(s.label)) labels.set(s.label, s);
    figure.querySelector(".legend").replaceChildren(...(chart.note ? [make("span", {class: "soft"}, chart.note)] : []), ...[...labels].map(([label, s]) => {
      const swatch = make("canvas", {width: 44, height: 22, "aria-hidden": "true"}), context = swatch.getContext("2d");
      const flat = {...s, x: s.line ? [0, 22, 44] : [22], y: s.line ? [11, 11, 11] : [11], low: [], high: [], left: s.left.length ? [0] : [], right: s.left.length ? [44] : [], starts: []};
      if (s.left.length) flat.y = [11];
      paint(context, {...flat, marker: ""}, x => x, y => y, 2, style("--ground"));
      paint(context, {...flat, x: [22], y: [11], line: "", left: [], right: [], size: Math.min(s.size, 8), alpha: 1}, x => x, y => y, 2, style("--ground"));
      const button = make("button", {type: "button", "aria-pressed": String(!state.off.has(label))}, swatch, label);
      button.addEventListener("click", () => {
        state.off.has(label) ? state.off.delete(label) : state.off.add(label);
        button.setAttribute("aria-pressed", String(!state.off.has(label)));
        state.plots.forEach(p => p.redraw());
      });
      return button;
    }));
  }

  function tools(figure, chart) {
    const bar = figure.querySelector(".tools"), button = (label, act, pressed) => {
      const b = make("button", {type: "button", ...(pressed === undefined ? {} : {"aria-pressed": String(pressed)})}, label);
      b.addEventListener("click", () => act(b));
      return b;
    };
    const all = [];
    for (const which of ["x", "y"]) if (positive(chart, which)) {
      const now = chart.panels[0][which].log;
      all.push(button(`log ${which}`, b => {
        const next = b.getAttribute("aria-pressed") != "true";
        figure.state.log[which] = next;
        b.setAttribute("aria-pressed", String(next));
        draw(figure, figure.state.chart, false);
      }, now));
    }
    all.push(button("zoom in", () => figure.state.plots.forEach(p => p.zoom(1 / 1.5))), button("zoom out", () => figure.state.plots.forEach(p => p.zoom(1.5))),
      button("reset", () => figure.state.plots.forEach(p => p.reset())),
      button("CSV", () => save(`${chart.name}.csv`, rows(figure.state.chart).map(r => r.map(quoted).join(",")).join("\n") + "\n", "text/csv")));
    bar.prepend(...all);
    const data = figure.querySelector("details.data");
    data?.addEventListener("toggle", () => {
      if (!data.open) return;
      const every = rows(figure.state.chart), shown = every.slice(1, 501);
      const cut = every.length - 1 > shown.length ? `The first ${shown.length} of ${every.length - 1} points; all are in the CSV.` : "";
      const keep = every[0].map((_, c) => shown.some(r => r[c] !== ""));
      const cells = (row, tag) => row.filter((_, c) => keep[c]).map(v => make(tag, tag == "th" ? {scope: "col"} : {}, typeof v == "number" ? short(v, 6) : v));
      data.querySelector(".scroll").replaceChildren(make("table", {}, make("caption", {}, cut || "The points of the figure."),
        make("thead", {}, make("tr", {}, ...cells(every[0], "th"))), make("tbody", {}, ...shown.map(r => make("tr", {}, ...cells(r, "td"))))));
    });
  }

  /* Draws a description, the one inside the figure unless another is given. */
  function show(figure, chart) {
    const first = !figure.state;
    chart ??= JSON.parse(figure.querySelector("script").textContent);
    draw(figure, chart);
    if (first) tools(figure, chart);
    drawn.add(figure);
    figure.dataset.drawn = "";
  }
  const watcher = new IntersectionObserver(entries => entries.forEach(entry => {
    if (entry.isIntersecting) { watcher.unobserve(entry.target); show(entry.target); }
  }), {rootMargin: "200px"});
  const repaint = () => drawn.forEach(figure => draw(figure, figure.state.chart));
  dark.addEventListener("change", repaint);
  addEventListener("beforeprint", () => { printing = true; document.querySelectorAll("figure.chart:not([data-drawn])").forEach(f => f.querySelector("script") && show(f)); repaint(); });
  addEventListener("afterprint", () => { printing = false; repaint(); });
  const views = () => [...drawn].flatMap(figure => figure.state.plots);
  return {mount: figure => watcher.observe(figure), show, views, si, short, make, save};
})();
document.querySelectorAll("figure.chart").forEach(figure => { if (figure.querySelector("script")) charts.mount(figure); });
