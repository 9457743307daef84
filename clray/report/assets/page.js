// The trials table of `clray report`: sorts, filters, shows and hides columns. Without scripts the table is still there.
"use strict";
(() => {
  const table = document.getElementById("trials");
  window.addEventListener("beforeprint", () => document.querySelectorAll("details.trial").forEach((d) => { d.open = true; }));
  if (!table) return;
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const filter = document.getElementById("filter");
  const status = document.getElementById("status");
  const best = document.getElementById("best");

  const valueOf = (row, index) => row.cells[index].dataset.v ?? row.cells[index].textContent;
  const isNumber = (value) => value !== "" && !Number.isNaN(Number(value));

  function sort(index, descending) {
    const sign = descending ? -1 : 1;
    const compare = (a, b) => {
      const x = valueOf(a, index), y = valueOf(b, index);
      if (x === "" || y === "") return (x === "") - (y === "");  // rows without a value come last either way
      return sign * (isNumber(x) && isNumber(y) ? Number(x) - Number(y) : x.localeCompare(y));
    };
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
    body.append(...[...body.rows].sort(compare));
  }

  const show = (index, visible) => {
    heads[index].hidden = !visible;
    rows.forEach((row) => { row.cells[index].hidden = !visible; });
    const box = document.querySelector(`.boxes input[value="${CSS.escape(heads[index].dataset.key)}"]`);
    if (box) box.checked = visible;
  };

  const OPERATORS = {
    "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b, "=": (a, b) => a === b, "!=": (a, b) => a !== b,
  };

  // Words must all occur in the row; `key<0.1` compares a column, whose key may be given by its end.
  function test(word) {
    const found = /^([^<>=!]+)(<=|>=|!=|<|>|=)(.+)$/.exec(word);
    if (!found) return (row) => row.textContent.toLowerCase().includes(word);
    const index = heads.findIndex((head) => {
      const key = head.dataset.key.toLowerCase();
      return key === found[1] || key.endsWith(`.${found[1]}`) || head.textContent.toLowerCase() === found[1];
    });
    if (index < 0) return () => false;
    const wanted = found[3];
    return (row) => {
      const value = valueOf(row, index).toLowerCase();
      if (value === "") return false;
      return isNumber(value) && isNumber(wanted) ? OPERATORS[found[2]](Number(value), Number(wanted)) : OPERATORS[found[2]](value, wanted);
    };
  }

  function apply() {
    const tests = filter.value.toLowerCase().split(/\s+/).filter(Boolean).map(test);
    let visible = 0;
    rows.forEach((row) => {
      const kept = (!status.value || row.querySelector(".status").textContent === status.value) && tests.every((passes) => passes(row));
      row.hidden = !kept;
      visible += kept;
    });
    document.getElementById("shown").textContent = `${visible} of ${rows.length}`;
  }

  heads.forEach((head, index) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    sort(index, before ? before === "ascending" : head.dataset.best === "high");
  }));
  best.addEventListener("change", () => {
    const index = heads.findIndex((head) => head.dataset.key === best.value);
    if (index < 0) return;
    show(index, true);
    sort(index, heads[index].dataset.best === "high");
  });
  document.querySelectorAll(".boxes input").forEach((box) => box.addEventListener("change", () => {
    show(heads.findIndex((head) => head.dataset.key === box.value), box.checked);
  }));
  filter.addEventListener("input", apply);
  status.addEventListener("change", apply);
  apply();
})();
