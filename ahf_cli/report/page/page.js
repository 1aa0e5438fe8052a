"use strict";
document.documentElement.classList.add("js");

// Sort by the first number of each cell if all cells have one, else by text.
function keyOf(cell) {
  const box = cell.querySelector("input");
  if (box) return box.checked ? "1" : "0";
  return cell.textContent.trim();
}

function compare(a, b) {
  const number = (text) => (text.startsWith("∞") ? Infinity : parseFloat(text.replace("−", "-")));
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) {
    return Number.isNaN(x) === Number.isNaN(y) ? a.localeCompare(b) : Number.isNaN(x) ? 1 : -1;
  }
  return x === y ? a.localeCompare(b) : x - y;
}

function sortBy(table, column, heading) {
  const down = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.children) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  const body = table.tBodies[0];
  const rows = [...body.rows].sort((p, q) => compare(keyOf(p.cells[column]), keyOf(q.cells[column])));
  body.append(...(down ? rows.reverse() : rows));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sortBy(table, column, heading));
  });
}

// Every renderer named "trials" has one entry a trial.
function models() {
  return Bokeh.documents.flatMap((doc) => [...doc.all_models]);
}

function showTrials() {
  const shown = new Map();
  for (const box of document.querySelectorAll("input[data-trial]")) shown.set(box.dataset.trial, box.checked);
  for (const model of models()) {
    if (model.type !== "GlyphRenderer" || model.name !== "trials") continue;
    const names = [...model.data_source.data.name];
    model.view.filter.booleans = names.map((name) => shown.get(name) !== false);
  }
}

document.getElementById("trials").addEventListener("change", showTrials);
for (const [id, value] of [["all", true], ["none", false]]) {
  document.getElementById(id).addEventListener("click", () => {
    for (const box of document.querySelectorAll("input[data-trial]")) box.checked = value;
    showTrials();
  });
}

// Axes and texts take the colours of the page.
function paint() {
  const style = getComputedStyle(document.documentElement);
  const [ink, line] = [style.getPropertyValue("--ink").trim(), style.getPropertyValue("--line").trim()];
  for (const model of models()) {
    if (model.type.endsWith("Axis")) {
      model.setv({
        axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink,
        major_tick_line_color: ink, minor_tick_line_color: line,
      });
    } else if (model.type === "Grid") {
      model.grid_line_color = line;
    } else if (model.type === "Legend") {
      model.setv({ label_text_color: ink, inactive_fill_color: style.getPropertyValue("--paper").trim() });
    }
  }
}

function ready() {
  if (!Bokeh.documents.length) return void setTimeout(ready, 20);
  paint();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  if (matchMedia("(pointer: coarse)").matches) {
    for (const model of models()) if (model.type === "Toolbar") model.active_drag = null;  // a finger scrolls
  }
  document.documentElement.classList.add("ready");
}
if (typeof Bokeh !== "undefined") ready();
