"use strict";
// What htmx does not do: show the sliders' values, reuse a picture's settings, keep the pixels of miniatures sharp.
const SMALL_PX = 128;

function sharpen(image) {
  if (image.naturalWidth && Math.max(image.naturalWidth, image.naturalHeight) <= SMALL_PX) image.classList.add("pixelated");
}

function show(slider) {
  const row = slider.closest(".slider");
  row.querySelector("output").value = String(Number(slider.value));
  row.classList.toggle("used", Number(slider.value) > 0);
}

function takeUp(again, number) {
  const form = document.getElementById("ask");
  if (form.elements.namedItem("base").value !== again.fields.base) {
    // The sliders of another base model are on their own page.
    location.assign(`/draw?base=${encodeURIComponent(again.fields.base)}#again-${number}`);
    return;
  }
  for (const [name, value] of Object.entries(again.fields)) {
    const field = form.elements.namedItem(name);
    if (field) field.value = value ?? "";
  }
  for (const slider of form.querySelectorAll("input[type=range]")) {
    slider.value = again.weights[slider.name.replace(/^weight:/, "")] ?? 0;
    show(slider);
  }
  form.elements.namedItem("prompt").focus({ preventScroll: true });
  form.scrollIntoView({ block: "nearest" });
}

document.addEventListener("load", (event) => event.target instanceof HTMLImageElement && sharpen(event.target), true);
document.addEventListener("input", (event) => {
  if (event.target.matches("input[type=range]")) show(event.target);
  if (event.target.id === "find") {
    const wanted = event.target.value.toLowerCase();
    for (const row of document.querySelectorAll(".slider")) {
      row.hidden = !row.classList.contains("used") && !row.querySelector("label").textContent.toLowerCase().includes(wanted);
    }
  }
});
document.addEventListener("click", (event) => {
  const again = event.target.closest("[data-again]");
  if (again) takeUp(JSON.parse(again.dataset.again), again.closest("[data-number]").dataset.number);
  if (event.target.closest(".dismiss")) event.target.closest(".fault").remove();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) document.getElementById("ask")?.requestSubmit();
});
document.addEventListener("htmx:afterSwap", () => {
  const strip = document.getElementById("strip");
  if (strip && strip.getBoundingClientRect().top > innerHeight * 0.7) strip.scrollIntoView({ behavior: "smooth" });
});
document.addEventListener("htmx:beforeRequest", () => document.querySelector(".fault")?.remove());
const BROKEN = {
  "htmx:sendError": "The gallery does not answer. Is it still running?",
  "htmx:responseError": "This could not be drawn. The terminal that the gallery was started in says why.",
};
for (const [event, words] of Object.entries(BROKEN)) {
  document.addEventListener(event, () => {
    const fault = document.createElement("div");
    fault.className = "fault";
    fault.setAttribute("role", "alert");
    fault.innerHTML = `<p>${words}</p><button type="button" class="dismiss" aria-label="Dismiss">×</button>`;
    document.getElementById("strip")?.prepend(fault);
  });
}
document.querySelectorAll("img").forEach(sharpen);
document.querySelectorAll(".slider input").forEach(show);
if (location.hash.startsWith("#again-")) {
  document.querySelector(`[data-number="${Number(location.hash.slice(7))}"] .again`)?.click();
}
