"use strict";
// Hide and show curves by their names; read values at the pointer or with the arrow keys.
for (const figure of document.querySelectorAll("figure.chart")) {
  const json = figure.querySelector("script");
  if (!json) continue;
  const { x, at, unit, digits, series } = JSON.parse(json.textContent);
  const svg = figure.querySelector(":scope > svg"), curves = svg.querySelectorAll("g.series"), bands = svg.querySelectorAll(".band");
  const buttons = figure.querySelectorAll(".legend button");
  const cursor = svg.querySelector(".cursor"), readout = figure.querySelector(".readout");
  let index = 0;

  buttons.forEach((button, i) => button.addEventListener("click", () => {
    const visible = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", visible);
    for (const element of [curves[i], bands[i]]) if (element) element.style.display = visible ? "" : "none";
    hide();
  }));

  const text = (value) => value.toFixed(digits) + unit;
  const show = (i) => {
    index = Math.max(0, Math.min(x.length - 1, i));
    cursor.setAttribute("x1", at[index]);
    cursor.setAttribute("x2", at[index]);
    cursor.style.display = "";
    const head = document.createElement("b");
    head.textContent = svg.querySelector(".label:last-of-type").textContent + ": " + x[index];
    const rows = series
      .map(({ y, low, high }, i) => ({ y: y[index], low: low && low[index], high: high && high[index], i }))
      .filter(({ y, i }) => y !== null && buttons[i].getAttribute("aria-pressed") === "true")
      .sort((a, b) => b.y - a.y)
      .map(({ y, low, high, i }) => {
        const row = document.createElement("span"), mark = document.createElement("i");
        mark.className = [...curves[i].classList].find((name) => name.startsWith("color"));
        const band = low === null || low === undefined ? "" : ` (${low.toFixed(digits)} to ${high.toFixed(digits)})`;
        row.append(mark, `${buttons[i].textContent.trim()}: ${text(y)}${band}`);
        return row;
      });
    readout.replaceChildren(head, ...rows);
    readout.hidden = false;
  };
  const hide = () => {
    cursor.style.display = "none";
    readout.hidden = true;
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect(), to = ((event.clientX - box.left) / box.width) * 440;
    show(at.reduce((best, value, i) => (Math.abs(value - to) < Math.abs(at[best] - to) ? i : best), 0));
  };
  svg.addEventListener("pointermove", nearest);
  svg.addEventListener("pointerdown", nearest);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || hide()); // a finger covers the values
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    show(readout.hidden ? index : index + step);
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));
