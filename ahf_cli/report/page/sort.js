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

