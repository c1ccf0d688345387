// Tables sort by a press of a header: largest first for numbers, A first for words, the other way at the next press.
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const falling = before === "none" ? numeric : before === "ascending";
      for (const other of heads) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const body = table.tBodies[0];
      const rows = Array.from(body.rows, (row) => {
        const cell = row.cells[column];
        return { row, key: numeric ? (cell.dataset.v === undefined ? null : Number(cell.dataset.v)) : cell.textContent };
      });
      const words = new Intl.Collator("en", { numeric: true });
      rows.sort((a, b) => {
        if (a.key === null || b.key === null) return (a.key === null) - (b.key === null); // without a number: last
        const order = numeric ? a.key - b.key : words.compare(a.key, b.key);
        return falling ? -order : order;
      });
      body.append(...rows.map((entry) => entry.row));
    });
  });
}
