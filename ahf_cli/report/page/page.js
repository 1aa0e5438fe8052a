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

// Outcome, hyperparameters and values of each trial by its name, from the table of trials.
function tableRows() {
  const heads = [...document.querySelectorAll("#trials th")].map((head) => head.textContent);
  const said = (row) => [...row.cells].map((cell, at) => cell.textContent && `${heads[at]} ${cell.textContent}`);
  const boxes = [...document.querySelectorAll("input[data-trial]")];
  return new Map(boxes.map((box) => [box.dataset.trial, said(box.closest("tr")).slice(2).filter(Boolean).join(", ")]));
}
const ROWS = tableRows();

// The trial below the pointer is named under its plot.
function hovered(root) {
  for (const { visible, data_source: source } of root.renderers) {
    const [at] = visible && source.data.name ? source.inspected.indices : [];
    if (at === undefined) continue;
    const { name, x, y, xs, ys } = source.data;
    const parts = source.inspected.multiline_indices;
    const [point] = (xs && (parts instanceof Map ? parts.get(at) : parts[at])) || [0];
    const [along, value] = xs ? [xs[at][point], ys[at][point]] : [x[at], y[at]];
    const place = xs ? `${value.toPrecision(4)} at ${along.toPrecision(4)}` : "";
    return [name[at], place, ROWS.get(name[at])].filter(Boolean).join(": ");
  }
  return "";
}

function tellTrials() {
  for (const root of Bokeh.documents.flatMap((doc) => doc.roots())) {
    const place = document.querySelector(`[data-root-id="${root.id}"]`).closest(".plot").querySelector(".readout");
    for (const { data_source: source } of root.renderers) {
      if (source.data.name) source.inspect.connect(() => { place.textContent = hovered(root); });
    }
  }
}

function ready() {
  if (!Bokeh.documents.length) return void setTimeout(ready, 20);
  tellTrials();
  if (innerWidth < 600) {
    for (const model of models()) {
      if (model.type === "Legend") model.setv({ label_text_font_size: "8pt", glyph_width: 18, padding: 0, margin: 2 });
    }
  }
  if (matchMedia("(pointer: coarse)").matches) {
    for (const model of models()) if (model.type === "Toolbar") model.active_drag = null;  // a finger scrolls
  }
  document.documentElement.classList.add("ready");
}
if (typeof Bokeh !== "undefined") ready();
