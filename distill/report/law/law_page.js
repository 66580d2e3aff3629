"use strict";
document.getElementById("save-law").addEventListener("click", () =>
  charts.save("law.json", JSON.parse(document.getElementById("law-file").textContent), "application/json"));
