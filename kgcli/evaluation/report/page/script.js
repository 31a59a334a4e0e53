"use strict";

/* Theme: follow the system, or a choice that is remembered where the browser allows it. */
const THEMES = ["system", "light", "dark"];
const themeButton = document.getElementById("theme");

function setTheme(theme) {
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = "Theme: " + theme;
}

function rememberedTheme() {
  try {
    const theme = localStorage.getItem("kgcli-theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch (error) {
    return "system";
  }
}

themeButton.addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || "system";
  const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
  setTheme(next);
  try {
    localStorage.setItem("kgcli-theme", next);
  } catch (error) {
    /* The page is shown from where nothing may be stored. */
  }
});
setTheme(rememberedTheme());

/* Tables: numbers by data-sort, empty cells last whichever way; a third click restores the order. */
function keyOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.sort === undefined) return cell.textContent.trim();
  return cell.dataset.sort === "" ? null : Number(cell.dataset.sort);
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sortTable(head) {
  const table = head.closest("table");
  const body = table.tBodies[0];
  const column = head.cellIndex;
  if (!table.firstOrder) table.firstOrder = [...body.rows];
  const numeric = table.firstOrder.some((row) => row.cells[column].dataset.sort);
  const cycle = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
  const now = head.getAttribute("aria-sort");
  const next = cycle[(now === null ? -1 : cycle.indexOf(now)) + 1] || cycle[0];
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  let rows = [...table.firstOrder];
  if (next !== "none") {
    head.setAttribute("aria-sort", next);
    const sign = next === "ascending" ? 1 : -1;
    const keyed = rows.map((row) => [keyOf(row, column), row]);
    const empty = keyed.filter(([key]) => key === null);
    const full = keyed.filter(([key]) => key !== null);
    full.sort(([a], [b]) => sign * compareKeys(a, b));
    rows = [...full, ...empty].map(([, row]) => row);
  }
  body.append(...rows);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("thead button");
  if (button) sortTable(button.closest("th"));
});

/* A hint where a table is wider than the page; the edge goes where there is no more to see. */
const scrolls = [...document.querySelectorAll(".scroll")];
function hint(box) {
  box.classList.toggle("wide", box.scrollWidth > box.clientWidth + 1);
  box.classList.toggle("end", box.scrollLeft + box.clientWidth >= box.scrollWidth - 1);
}
const resized = new ResizeObserver((entries) => entries.forEach((entry) => hint(entry.target)));
for (const box of scrolls) {
  resized.observe(box); /* also when the box around it is opened */
  box.addEventListener("scroll", () => hint(box), { passive: true });
}

/* Images of a subject come out of its template when it is first opened. */
function fill(details) {
  const template = details.querySelector(":scope > template");
  if (template) template.replaceWith(template.content.cloneNode(true));
}

const subjects = [...document.querySelectorAll("details.subject")];
for (const details of subjects) {
  details.addEventListener("toggle", () => details.open && fill(details));
  if (details.open) fill(details);
}

function showTarget() {
  const id = decodeURIComponent(location.hash.slice(1));
  const found = /^(?:case|subject)-(\d+)/.exec(id);
  if (!found) return;
  const details = document.getElementById("subject-" + found[1]);
  if (!details) return;
  details.hidden = false;
  fill(details);
  details.open = true;
  const target = document.getElementById(id) || details;
  target.scrollIntoView({ block: target === details ? "start" : "center" });
  (target === details ? details.querySelector("summary") : target).focus({ preventScroll: true });
}
window.addEventListener("hashchange", showTarget);
document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="#"]');
  if (link && link.getAttribute("href") === location.hash) showTarget(); /* no hashchange for the same place */
});
showTarget();

/* Finding subjects, and prompts in them. */
const find = document.getElementById("find");
if (find) {
  const texts = subjects.map((details) => {
    const template = details.querySelector("template");
    const prompts = (template ? template.content : details).querySelectorAll(".says");
    const name = details.querySelector(".name").textContent;
    return [name, ...[...prompts].map((prompt) => prompt.textContent)].join("\n").toLowerCase();
  });
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    subjects.forEach((details, at) => (details.hidden = !texts[at].includes(wanted)));
  });
  const openAll = (open) => subjects.forEach((details) => !details.hidden && (details.open = open));
  document.getElementById("open-all").addEventListener("click", () => openAll(true));
  document.getElementById("close-all").addEventListener("click", () => openAll(false));
}

/* Enlarged image, with its numbers; arrow keys go on. */
const viewer = document.getElementById("viewer");
const measures = JSON.parse(document.getElementById("measures").textContent);
const part = (name) => document.getElementById("viewer-" + name);
let around = [];
let place = 0;

function copyImages(from, to) {
  to.replaceChildren(...[...from].map((image) => image.cloneNode(true)));
}

function show(at) {
  place = (at + around.length) % around.length;
  const shown = around[place];
  const prompt = shown.closest(".prompt");
  const read = prompt.querySelector(".read");
  const run = shown.closest(".outputs").querySelector(".run");
  const inputs = shown.closest(".group").querySelector(".inputs");
  copyImages(shown.querySelectorAll("img, .absent"), part("image"));
  copyImages(inputs ? inputs.querySelectorAll("img") : [], part("inputs"));
  part("text").textContent = prompt.querySelector("h4").textContent;
  part("read").textContent = read ? read.textContent : "";
  part("run").textContent = run ? run.textContent : "";
  part("path").textContent = shown.dataset.path;
  part("place").textContent = place + 1 + " of " + around.length;
  const values = shown.dataset.values.split(",");
  const rows = measures.flatMap((title, at) => {
    if (!values[at]) return [];
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = title;
    row.append(head);
    row.insertCell().textContent = values[at];
    return [row];
  });
  part("values").tBodies[0].replaceChildren(...rows);
}

document.addEventListener("click", (event) => {
  const clicked = event.target.closest(".case");
  if (!clicked) return;
  around = [...clicked.closest("details").querySelectorAll(".case")];
  show(around.indexOf(clicked));
  viewer.showModal();
});
part("close").addEventListener("click", () => viewer.close());
viewer.addEventListener("click", (event) => {
  const step = event.target.closest("[data-step]");
  if (step) show(place + Number(step.dataset.step));
  else if (event.target === viewer) viewer.close();
});
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") show(place - 1);
  if (event.key === "ArrowRight") show(place + 1);
});
viewer.addEventListener("close", () => around[place] && around[place].focus());
