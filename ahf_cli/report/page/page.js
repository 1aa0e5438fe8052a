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
