"use strict";
/* Asks for the data again and again; a figure that a reader zoomed stays as it is. */
(() => {
  const $ = id => document.getElementById(id), every = 1000 * JSON.parse($("every").textContent);
  const figure = $("live"), body = document.querySelector("#runs ~ * tbody, section[aria-labelledby=runs] tbody");
  let last = "";
  async function refresh() {
    try {
      const answer = await fetch("data", {cache: "no-store"}), text = await answer.text();
      if (!answer.ok) throw new Error(String(answer.status));
      if (text != last) {
        last = text;
        const told = JSON.parse(text);
        $("report").hidden = !told.report;
        body.replaceChildren(...told.rows.map(row => charts.make("tr", {}, ...row.map((cell, i) => charts.make(i ? "td" : "th", i ? {class: "text"} : {scope: "row", class: "text"}, cell)))));
        if (told.chart.panels.length) charts.show(figure, told.chart);
        $("state").textContent = `${told.text} As of ${new Date().toLocaleTimeString()}.`;
      }
    } catch {
      last = "";  // so that an answer with the same data takes the sentence away
      $("state").textContent = "The server does not answer; was `distill watch --page` ended?";
    }
    setTimeout(refresh, every);
  }
  refresh();
})();
