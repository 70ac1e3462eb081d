"use strict";

// Light and dark: as the system has it, until somebody chooses.
const themes = {"light dark": "Auto", "light": "Light", "dark": "Dark"};
const themeButton = document.getElementById("theme");
const recall = () => { try { return localStorage.getItem("kexue-theme"); } catch { return null; } };  // files may have no storage
const setTheme = (scheme) => {
  document.documentElement.style.colorScheme = scheme;
  themeButton.textContent = themes[scheme];
  themeButton.setAttribute("aria-label", `Colours: ${themes[scheme]}. Change`);
};
setTheme(recall() in themes ? recall() : "light dark");
themeButton.hidden = false;
themeButton.addEventListener("click", () => {
  const names = Object.keys(themes);
  const next = names[(names.indexOf(document.documentElement.style.colorScheme) + 1) % names.length];
  setTheme(next);
  try { localStorage.setItem("kexue-theme", next); } catch { /* it holds for this visit */ }
});

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(source);  // not allowed here: leave it selected for the keyboard
      button.textContent = "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}

// Values under the pointer, or step by step with the arrow keys.
const nearest = (sorted, value) => {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low > 0 && value - sorted[low - 1] < sorted[low] - value ? low - 1 : low;
};
const writeNumber = (value) => value.toLocaleString("en", {maximumSignificantDigits: Math.abs(value) >= 1000 ? 15 : 4});
const writeValue = (value, form) => form === "share" ? `${(100 * value).toFixed(2)}%` : writeNumber(value);

for (const figure of document.querySelectorAll("figure[data-chart]")) {
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const area = figure.querySelector(".area"), readout = figure.querySelector(".readout"), plot = figure.querySelector(".chart");
  const moving = chart.series.filter((series) => !series.level);
  const places = [...new Set(moving.flatMap((series) => series.x))].sort((a, b) => a - b);
  const [left, right] = chart.across;
  const cursor = document.createElement("div");
  cursor.className = "cursor";
  let at = -1;
  const hide = () => { at = -1; cursor.remove(); readout.textContent = ""; };
  const show = (index) => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const share = right > left ? (places[at] - left) / (right - left) : .5;
    const lines = moving.flatMap((series) => {
      const index = nearest(series.x, places[at]);
      const isNear = Math.abs(series.x[index] - places[at]) <= .02 * (right - left);
      return isNear ? [`${series.label}: ${writeValue(series.y[index], chart.form)}`] : [];
    });
    cursor.style.left = `${100 * share}%`;
    area.append(cursor);
    readout.textContent = [`${chart.xLabel} ${writeNumber(places[at])}`, ...lines].join("\n");
    readout.style.right = share > .5 ? "auto" : "";
    readout.style.left = share > .5 ? "1.2rem" : "";
  };
  area.addEventListener("pointermove", (event) => {
    const box = area.getBoundingClientRect();
    show(nearest(places, left + (right - left) * (event.clientX - box.left) / box.width));
  });
  area.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const large = Math.max(1, Math.round(places.length / 20));
    const step = {ArrowLeft: -1, ArrowRight: 1, PageDown: -large, PageUp: large}[event.key];
    const goal = {Home: 0, End: places.length - 1}[event.key] ?? (step === undefined ? undefined : at + step);
    if (event.key === "Escape") hide();
    if (goal === undefined) return;
    event.preventDefault();
    show(goal);
  });
}

// Only tables that scroll are stops of the Tab key.
const markScrollers = () => {
  for (const table of document.querySelectorAll(".table")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0; else table.removeAttribute("tabindex");
  }
};
markScrollers();
addEventListener("resize", markScrollers);
