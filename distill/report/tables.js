"use strict";
/* Tables that sort by a click on a column's name and filter by words ("micro") and conditions ("L_S<3.2"). */
(() => {
  const SCALE = {K: 1e3, M: 1e6, B: 1e9, T: 1e12, "%": 0.01};
  const value = text => {
    const found = /^([+\-\u2212]?[\d.,]+(?:e[+\-]?\d+)?)\s*([KMBT%]?)$/i.exec(text.trim());
    return found ? Number(found[1].replaceAll(",", "").replace("\u2212", "-")) * (SCALE[found[2].toUpperCase()] || 1) : NaN;
  };
  const plain = name => name.trim().toLowerCase();
  function condition(word, names) {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(.+)$/.exec(word), column = found ? names.indexOf(plain(found[1])) : -1;
    if (column < 0) return row => row.words.includes(word.toLowerCase());
    const [, , sign, right] = found, limit = value(right);
    return row => {
      const left = row.values[column];
      if (isNaN(limit)) return row.texts[column].toLowerCase() == right.toLowerCase();
      return {"<": left < limit, ">": left > limit, "<=": left <= limit, ">=": left >= limit, "=": left == limit}[sign];
    };
  }
  /* The rows of a table: its elements, or cells [text, tone, link] beside it, of which elements are made when shown. */
  function source(table) {
    const beside = document.querySelector(`script[data-rows="${table.id}"]`);
    const known = beside ? JSON.parse(beside.textContent).map(cells => ({cells})) : [...table.tBodies[0].rows].map(element => ({element}));
    return known.map((row, i) => {
      const texts = row.cells ? row.cells.map(cell => cell[0]) : [...row.element.cells].map(c => c.textContent);
      return {...row, i, texts, values: texts.map(value), words: texts.join(" ").toLowerCase()};
    });
  }
  function build(row, heads) {
    const line = document.createElement("tr");
    row.cells.forEach(([text, tone = "", link = ""], column) => {
      const cell = line.appendChild(document.createElement(column ? "td" : "th"));
      if (!column) cell.scope = "row";
      cell.className = [heads[column].className, tone].filter(Boolean).join(" ");
      if (!link) { cell.textContent = text; return; }
      const anchor = cell.appendChild(document.createElement("a"));
      anchor.href = "#" + link;
      anchor.textContent = text;
    });
    return line;
  }
  function prepare(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells], names = heads.map(h => plain(h.textContent));
    const bar = document.querySelector(`input[data-filters="${table.id}"]`).parentElement;
    const input = bar.querySelector("input"), count = bar.querySelector("output"), more = bar.querySelector("button");
    const page = more ? body.rows.length : Infinity;
    let rows = null, order = null, limit = page;
    function draw() {
      rows ??= source(table);
      order ??= rows;
      const tests = input.value.replace(/\s*(<=|>=|<|>|=)\s*/g, "$1").split(/\s+/).filter(Boolean).map(word => condition(word, names));
      const found = order.filter(row => tests.every(test => test(row)));
      body.replaceChildren(...found.slice(0, limit).map(row => row.element ??= build(row, heads)));
      const shown = Math.min(found.length, limit);
      count.value = (shown < found.length ? `${shown} shown of ${found.length}, ` : `${found.length} of `) + `${rows.length} rows`;
      if (more) more.hidden = shown == found.length;
    }
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") == "ascending", sign = down ? -1 : 1;
        heads.forEach(h => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        rows ??= source(table);
        const by = (a, b) => {
          const [p, q] = [a.values[column], b.values[column]];
          if (isNaN(p) && isNaN(q)) return a.texts[column].localeCompare(b.texts[column]) * sign;
          return isNaN(p) ? 1 : isNaN(q) ? -1 : (p - q) * sign;
        };
        order = rows.toSorted((a, b) => by(a, b) || a.i - b.i);
        draw();
      });
    });
    input.addEventListener("input", () => { limit = page; draw(); });
    more?.addEventListener("click", () => { limit += page; draw(); });
  }
  document.querySelectorAll("table[data-sorts]").forEach(prepare);
})();
