"use strict";
// The page is complete without this script.
const at = (svg, event) => {
  const box = svg.getBoundingClientRect();
  const scale = svg.viewBox.baseVal.width / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
};
// A mouse that leaves clears the readout; a lifted finger does not, so what a tap shows stays until the next tap.
const follow = (svg, point, leave) => {
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());
  document.addEventListener("pointerdown", leave, true);
};
// Curves: the values at the step under the pointer.
for (const svg of document.querySelectorAll("svg.chart[data-series]")) {
  const [left, right, low, high] = JSON.parse(svg.dataset.frame);
  const series = JSON.parse(svg.dataset.series);
  const cross = svg.querySelector(".cross");
  const readout = svg.parentElement.querySelector(".readout");
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const text = (value) => (Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : String(+value.toPrecision(4)));
  const point = (event) => {
    const share = Math.min(1, Math.max(0, (at(svg, event)[0] - left) / (right - left)));
    const step = nearest(series.flatMap((one) => one.points), low + share * (high - low))[0];
    const x = left + ((step - low) / (high - low)) * (right - left);
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    svg.classList.add("on");
    // A value from another step names that step, unless it is so close that thinning may have dropped the exact one.
    const apart = (at) => (Math.abs(at - step) > 0.02 * (high - low) ? ` at step ${at}` : "");
    const values = series
      .map((one) => [one.label, ...nearest(one.points, step)])
      .sort((a, b) => (series.length > 4 ? svg.dataset.order * (a[2] - b[2]) : 0))
      .slice(0, 6);
    readout.textContent = [
      `step ${step}`,
      ...values.map(([label, at, value]) => `${label}: ${text(value)}${apart(at)}`),
    ].join(" · ");
  };
  follow(svg, point, () => {
    svg.classList.remove("on");
    readout.textContent = readout.dataset.rest;
  });
}
// Settings: the job nearest to the pointer, highlighted in this chart and in all others that show it.
const corners = (mark) =>
  mark.points ? [...mark.points].map((point) => [point.x, point.y]) : [[mark.cx.baseVal.value, mark.cy.baseVal.value]];
const distance = ([x, y], [ax, ay], [bx, by]) => {
  const length = (bx - ax) ** 2 + (by - ay) ** 2;
  const share = length ? Math.min(1, Math.max(0, ((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length)) : 0;
  return Math.hypot(x - ax - share * (bx - ax), y - ay - share * (by - ay));
};
const away = (mark, place) => {
  const all = corners(mark);
  return Math.min(...all.map((corner, index) => distance(place, corner, all[index + 1] || corner)));
};
const marked = [...document.querySelectorAll("svg.marks")];
const pick = (job) => {
  for (const svg of marked) {
    let found = false;
    for (const mark of svg.querySelectorAll(".mark")) {
      const on = mark.dataset.job === job;
      mark.classList.toggle("on", on);
      found = found || on;
    }
    svg.classList.toggle("picked", found);
  }
};
for (const svg of marked) {
  const readout = svg.parentElement.querySelector(".readout");
  const marks = [...svg.querySelectorAll(".mark")].reverse();
  const point = (event) => {
    const place = at(svg, event);
    const near = marks.map((mark) => [away(mark, place), mark]).reduce((a, b) => (b[0] < a[0] ? b : a));
    pick(near[1].dataset.job);
    readout.textContent = near[1].dataset.told;
  };
  follow(svg, point, () => {
    pick(null);
    readout.textContent = readout.dataset.rest;
  });
}
// A link from the ranking opens the job it leads to; printing opens all jobs.
const show = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", show);
show();
addEventListener("beforeprint", () => document.querySelectorAll("details.job").forEach((job) => (job.open = true)));
