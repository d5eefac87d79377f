// Parts of a page that are fetched again, a table that sorts and filters, and drawings that grow. No library but Plotly.
"use strict";
const all = (selector, inside = document) => [...inside.querySelectorAll(selector)];
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

// ---- parts: <div data-src="/parts/x" data-every="3"> by time, data-on="ended state" by event
const HOLDS = "a, button, input, [tabindex]";
const busy = new Set(), again = new Set(), shown = new WeakMap();
async function refresh(part) {
  if (busy.has(part)) { again.add(part); return; }
  if (part.closest("details:not([open])") || (part.contains(document.activeElement) && document.activeElement.matches("input, select, textarea"))) return;
  busy.add(part);
  try {
    const answer = await fetch(part.dataset.src, { headers: { accept: "text/html, text/plain" } });
    if (answer.status === 401) location.href = "/login";
    if (answer.ok) {
      const text = await answer.text();
      if (shown.get(part) === text) { /* nothing new */ }
      else if ("text" in part.dataset) { part.textContent = text; part.scrollTop = part.scrollHeight; }
      else {
        const held = part.contains(document.activeElement) ? all(HOLDS, part).indexOf(document.activeElement) : -1;
        const marked = all("input:checked", part).map((box) => box.value), table = part.querySelector(".scroll"), place = table && [table.scrollLeft, table.scrollTop];
        for (const plot of all(".plot", part)) window.Plotly?.purge(plot);
        part.innerHTML = text;
        for (const box of all("input[type=checkbox]", part)) box.checked = marked.includes(box.value);
        if (place) part.querySelector(".scroll")?.scrollTo(...place);
        if (held >= 0) all(HOLDS, part)[held]?.focus();
        if (part.id === "trials") arrange();
        drawn(part);
      }
      shown.set(part, text);
    }
  } catch { /* the server is away: the page stays, and asks again */ }
  busy.delete(part);
  if (again.delete(part)) setTimeout(() => refresh(part), 400);
}
const due = new Set();
function later(part) {
  if (due.has(part)) return;
  due.add(part);
  setTimeout(() => { due.delete(part); refresh(part); }, 100 + 500 * Math.random());
}
for (const part of all("[data-every]")) setInterval(() => document.hidden || refresh(part), 1000 * part.dataset.every);
for (const details of all("details")) details.addEventListener("toggle", () => all("[data-every]", details).forEach(refresh));
document.addEventListener("submit", (event) => {
  const asked = event.target.dataset.confirm;
  if (asked && !confirm(asked)) event.preventDefault();
});

// ---- the trials' table
let order = { column: 0, up: false };
function arrange() {
  const table = document.querySelector("#trials table");
  if (!table) return;
  const value = (row) => { const v = row.cells[order.column].dataset.v; return v === "" ? null : isNaN(v) ? v : Number(v); };
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (order.up ? 1 : -1);
  });
  const status = document.querySelector("[data-filter=status]").value, text = document.querySelector("[data-filter=text]").value.toLowerCase();
  for (const row of rows) row.hidden = Boolean((status && row.dataset.status !== status) || (text && !row.textContent.toLowerCase().includes(text)));
  table.tBodies[0].append(...rows);
  all("th", table).forEach((th, i) => i === order.column ? th.setAttribute("aria-sort", order.up ? "ascending" : "descending") : th.removeAttribute("aria-sort"));
}
document.addEventListener("click", (event) => {
  const head = event.target.closest("#trials th button")?.parentElement;
  if (!head) return;
  order = { column: head.cellIndex, up: order.column === head.cellIndex ? !order.up : true };
  arrange();
});
for (const filter of all("[data-filter]")) filter.addEventListener("input", arrange);
arrange();

// ---- the form that shows its study
const form = document.querySelector("[data-preview]");
let typed = 0;
form?.addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(async () => {
    const answer = await fetch(form.dataset.preview, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (answer.ok) document.getElementById("preview").innerHTML = await answer.text();
  }, 250);
});

// ---- drawings
const FATES = ["complete", "pruned", "failed"];
function draw(place, data, titles, extra = {}) {
  if (!window.Plotly) return;
  const axis = (title) => ({ title: { text: title }, gridcolor: colour("grid"), zeroline: false, automargin: true });
  const layout = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: colour("text"), size: 12 }, margin: { l: 50, r: 10, t: extra.legend === false ? 8 : 44, b: 40 }, hovermode: "closest",
    xaxis: { ...axis(titles[0]), tickformat: "d", dtick: Math.max(1, Math.ceil(Math.max(1, ...data.flatMap((d) => d.x)) / 10)) }, yaxis: { ...axis(titles[1]), ...extra.yaxis }, showlegend: extra.legend ?? true, legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 } };
  if (!data.length) Object.assign(layout, { xaxis: { visible: false }, yaxis: { visible: false }, annotations: [{ text: "Nothing has ended yet", showarrow: false, x: .5, y: .5, xref: "paper", yref: "paper", font: { color: colour("muted") } }] });
  Plotly.react(place, data, layout, { responsive: true, displaylogo: false, displayModeBar: false });
}
const plain = (text) => String(text).replace(/[<>&]/g, " ");
function steps(trials, sign) {
  let best = null;
  return trials.filter((t) => t.status === "COMPLETE" && t.score !== null).map((t) => { best = best === null ? t.score : sign * Math.min(sign * best, sign * t.score); return [t.number, best]; });
}
const drawings = {
  losses(place, values) {
    const line = (key, name, shade, dash) => ({ x: values.map((v) => v.epoch), y: values.map((v) => v[key]), name, mode: "lines+markers", line: { color: colour(shade), dash } });
    draw(place, [line("val_loss", "validation", "complete", "solid"), line("train_loss", "training", "pruned", "dot")], ["epoch", "loss"]);
  },
  race(place, values) {
    const shades = ["complete", "pruned", "failed", "accent", "muted"], dashes = ["solid", "dash", "dot", "dashdot"];
    const groups = [...new Set(values.map((study) => study.sampler))], many = groups.length < values.length;  // repeats of one sampler look alike
    draw(place, values.map((study, n) => { const s = steps(study.trials, study.sign), i = many ? groups.indexOf(study.sampler) : n; return { x: s.map((p) => p[0]), y: s.map((p) => p[1]), name: plain(many ? study.sampler : study.study), hovertext: plain(study.study), legendgroup: String(i), showlegend: !many || values.findIndex((v) => v.sampler === study.sampler) === n, mode: many ? "lines" : "lines+markers", line: { shape: "hv", color: colour(shades[i % 5]), dash: dashes[i % 4] } }; }), ["trial", "best so far"]);
  },
  history(place, { trials, objective, sign }) {
    const known = trials.filter((t) => t.score !== null), best = steps(trials, sign), shown = { complete: "circle", pruned: "triangle-down", failed: "x" };
    const data = FATES.map((fate) => { const mine = known.filter((t) => t.status === fate.toUpperCase()); return { x: mine.map((t) => t.number), y: mine.map((t) => t.score), name: fate, mode: "markers", marker: { color: colour(fate), symbol: shown[fate], size: 7, opacity: .75 } }; }).filter((d) => d.x.length);
    if (best.length) data.push({ x: best.map((p) => p[0]), y: best.map((p) => p[1]), name: "best so far", mode: "lines", line: { shape: "hv", color: colour("accent"), width: 2.5 } });
    const zero = known.find((t) => t.number === 0);
    if (zero && known.length) data.push({ x: [0, Math.max(1, ...known.map((t) => t.number))], y: [zero.score, zero.score], name: "default recipe", mode: "lines", line: { color: colour("muted"), dash: "dash" } });
    draw(place, data, ["trial", objective], { yaxis: objective === "val_loss" && known.length > 1 ? { type: "log", dtick: "D2", tickformat: "~g" } : {} });
  },
  curves(place, { curves, running, best }) {
    const line = (n, points, shade, width, opacity) => ({ x: points.map((p) => p[0]), y: points.map((p) => p[1]), name: `trial ${n}`, mode: "lines", opacity, line: { color: colour(shade), width }, hovertemplate: `trial ${n}<br>epoch %{x}: %{y:.4f}<extra></extra>` });
    const data = Object.entries(curves).filter(([n]) => !(n in running)).map(([n, points]) => line(n, points, Number(n) === best ? "accent" : "muted", Number(n) === best ? 2.5 : 1, Number(n) === best ? 1 : .45));
    for (const [n, points] of Object.entries(running)) data.push(line(n, points, "failed", 2.5, 1));
    draw(place, data, ["epoch", "validation loss"], { legend: false, yaxis: { type: "log", dtick: "D2", tickformat: "~g" } });
  },
};
function drawn(inside) { for (const place of all("[data-draw][data-values]", inside)) drawings[place.dataset.draw](place, JSON.parse(place.dataset.values)); }
drawn(document);

// ---- a study that is being watched
const live = document.getElementById("live");
if (live) {
  const name = encodeURIComponent(live.dataset.study), running = {}, planned = {};
  let known = null, waiting = 0, fetching = 0;
  const show = () => { waiting ||= setTimeout(() => {
    waiting = 0;
    if (known) for (const place of all("[data-draw]", live)) drawings[place.dataset.draw](place, { ...known, running });
    const items = Object.keys(planned).map((n) => {
      const item = document.createElement("li"), bar = document.createElement("progress"), last = running[n]?.at(-1), label = document.createElement("a"), text = document.createElement("span");
      label.href = `/studies/${name}/trials/${n}`; label.textContent = `trial ${n}`;
      bar.max = planned[n] || 1; bar.value = last?.[0] ?? 0; bar.ariaLabel = `trial ${n}: epoch ${bar.value} of ${bar.max}`;
      text.textContent = last ? `epoch ${last[0]} of ${planned[n]}, validation loss ${last[1]?.toFixed(4) ?? "none"}` : "first epoch";
      item.append(label, bar, text);
      return item;
    });
    if (!items.length) { items.push(document.createElement("li")); items[0].className = "sub"; items[0].textContent = "Nothing is being trained."; }
    document.getElementById("now").replaceChildren(...items);
  }, 300); };
  const load = () => { fetching ||= setTimeout(async () => {
    fetching = 0;
    try { const answer = await fetch(`/parts/data/${name}`); if (answer.ok) known = await answer.json(); } catch { return; }
    show();
  }, known ? 300 + 700 * Math.random() : 0); };  // not everybody who watches at the same moment
  const hear = {
    session() { for (const n of Object.keys(planned)) { delete planned[n]; delete running[n]; } },
    trial(e) { if (e.trial < 0) return; planned[e.trial] = e.params.epochs ?? 0; running[e.trial] ??= []; },
    epoch(e) { if (e.trial < 0) return; planned[e.trial] = e.epochs; const points = running[e.trial] ??= []; if (!points.some((p) => p[0] === e.epoch)) points.push([e.epoch, e.val_loss]); },
    again(e) { delete planned[e.trial]; },
    paused(e) { delete planned[e.trial]; delete running[e.trial]; load(); },
    ended(e) { delete planned[e.trial]; delete running[e.trial]; load(); },
    over() { this.session(); load(); },
    budget() {}, notice() {},
    state(e) { if (e.state !== "running") { this.session(); load(); } if (["done", "failed", "cancelled", "stored"].includes(e.state)) source.close(); },
  };
  const source = new EventSource(`/api/studies/${name}/events?after=${live.dataset.after}`);
  for (const kind of Object.keys(hear)) source.addEventListener(kind, (event) => {
    hear[kind](JSON.parse(event.data));
    show();
    for (const part of all("[data-on]")) if (part.dataset.on.split(" ").includes(kind)) later(part);
  });
  load();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => location.reload());
