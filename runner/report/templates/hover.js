"use strict";
// Charts: the values at the step under the pointer. The page is whole without this.
for (const svg of document.querySelectorAll("svg.chart")) {
  const [left, right, low, high] = JSON.parse(svg.dataset.frame);
  const series = JSON.parse(svg.dataset.series);
  const cross = svg.querySelector(".cross");
  const readout = svg.parentElement.querySelector(".readout");
  const nearest = (points, x) =>
    points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best));
  const text = (value) => (Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(2) : String(+value.toPrecision(4)));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const share = Math.min(1, Math.max(0, (px - left) / (right - left)));
    const step = nearest(series.flatMap((one) => one.points), low + share * (high - low))[0];
    const at = left + ((step - low) / (high - low)) * (right - left);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    svg.classList.add("on");
    const values = series
      .map((one) => [one.label, nearest(one.points, step)[1]])
      .sort((a, b) => (series.length > 4 ? a[1] - b[1] : 0))
      .slice(0, 6);
    readout.textContent = `step ${step}: ` + values.map(([label, value]) => `${label} ${text(value)}`).join(" · ");
  });
  svg.addEventListener("pointerleave", () => {
    svg.classList.remove("on");
    readout.textContent = readout.dataset.rest;
  });
}
// A link from the ranking opens the job it leads to; printing opens all.
const show = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.tagName === "DETAILS") target.open = true;
};
addEventListener("hashchange", show);
show();
addEventListener("beforeprint", () => document.querySelectorAll("details.job").forEach((job) => (job.open = true)));
