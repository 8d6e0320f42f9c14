// Keeps the page live: takes the stream's news, remembers what is chosen, and has everything drawn again.

import { drawCurves, drawGraph, drawLayers } from "./charts.js";
import { element, nodeColours, seconds, short } from "./format.js";
import { fillFacts, fillFigures, fillMembers, fillNeighbours } from "./tables.js";

const MOST_REASONS = 2; // nodes that are down for the same reason need not all say so
const page = (id) => document.getElementById(id);
const state = {
  nodes: [], // as /api/view tells them
  places: {}, // node id -> [x, y]
  history: new Map(), // node's key -> its rounds, oldest first
  news: 0, // counts changes of histories
  selected: null, // a node's key
  moment: "after", // of the last mix: before or after
  colours: new Map(), // node's key -> colour of its curves
  cutOff: null, // since when the dashboard itself does not answer
};

// --- what comes in ---------------------------------------------------------------------------------------------------

const stream = new EventSource("api/stream");

stream.addEventListener("begin", () => {
  state.history.clear();
  state.news += 1;
  state.cutOff = null;
});

stream.addEventListener("history", (event) => {
  const { key, from, rounds } = JSON.parse(event.data);
  const kept = (state.history.get(key) ?? []).filter((record) => record.round < from);
  state.history.set(key, [...kept, ...rounds]);
  state.news += 1;
});

stream.addEventListener("view", (event) => {
  const view = JSON.parse(event.data);
  state.nodes = view.nodes;
  state.places = view.places;
  const keys = new Set(view.nodes.map((node) => node.key));
  for (const key of state.history.keys()) if (!keys.has(key)) state.history.delete(key);
  if (!keys.has(state.selected)) {
    state.selected = (view.nodes.find((node) => node.consensus) ?? view.nodes[0])?.key ?? null;
  }
  draw();
});

stream.addEventListener("error", () => {
  state.cutOff ??= new Date();
  fillNotice();
});

// --- what is chosen --------------------------------------------------------------------------------------------------

page("moment").addEventListener("click", ({ target }) => {
  if (!target.dataset.moment) return;
  state.moment = target.dataset.moment;
  draw();
});

const prefersDark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const chosen = localStorage.getItem("conlora-theme");
  return chosen ?? (prefersDark.matches ? "dark" : "light");
}

function applyTheme() {
  document.documentElement.dataset.theme = theme();
  draw();
}

page("theme").addEventListener("click", () => {
  localStorage.setItem("conlora-theme", theme() === "dark" ? "light" : "dark");
  applyTheme();
});
prefersDark.addEventListener("change", applyTheme);
document.addEventListener("visibilitychange", draw);

// --- what is shown ---------------------------------------------------------------------------------------------------

function draw() {
  if (document.hidden) return;
  for (const button of page("moment").children) {
    button.setAttribute("aria-pressed", String(button.dataset.moment === state.moment));
  }
  const dark = document.documentElement.dataset.theme === "dark";
  state.colours = nodeColours(state.nodes.map((node) => node.key), dark);
  const node = state.nodes.find((each) => each.key === state.selected);
  fillNotice();
  fillNodes();
  fillFacts(page("federation"), page("setup"), page("facts"), node);
  fillFigures(page("figures"), page("figures-note"), node, state.moment);
  fillNeighbours(page("neighbours"), node);
  fillMembers(page("members"), node, state.moment);
  if (window.Plotly) {
    drawGraph(page("graph"), page("graph-note"), state, node);
    drawCurves(page("curves"), state, node);
    drawLayers(page("layers"), page("layers-note"), state, node);
  }
}

function fillNotice() {
  const down = state.nodes.filter((node) => node.error);
  const lines = down.slice(0, MOST_REASONS).map((node) => {
    const age = node.seen_seconds === null ? "" : `; shown as it was ${seconds(node.seen_seconds)} ago`;
    return `${short(node.name)}: ${node.error}${age}`;
  });
  if (down.length > MOST_REASONS) {
    lines.push(`Nor do these answer: ${down.slice(MOST_REASONS).map((node) => short(node.name)).join(", ")}.`);
  }
  lines.push(...state.nodes.filter((node) => node.status?.message).map((node) => `${short(node.name)}: ${node.status.message}`));
  if (state.cutOff) {
    lines.unshift(`The dashboard does not answer since ${state.cutOff.toLocaleTimeString()}; what you see is older.`);
  } else if (!state.nodes.length) {
    lines.push("No node runs there yet.");
  }
  page("notice").hidden = !lines.length;
  page("notice").textContent = lines.join("\n");
}

function fillNodes() {
  const buttons = state.nodes.map((node) => {
    const swatch = element("span", { class: "swatch" });
    swatch.style.background = state.colours.get(node.key);
    const round = node.error ? "down" : node.status ? `round ${node.status.round}` : "…";
    const pressed = String(node.key === state.selected);
    const button = element(
      "button",
      { type: "button", "aria-pressed": pressed, "data-node": node.name, class: node.error ? "down" : "", title: node.name },
      swatch,
      element("span", {}, short(node.name)),
      element("small", {}, round),
    );
    button.addEventListener("click", () => {
      state.selected = node.key;
      draw();
    });
    return button;
  });
  const focused = [...page("nodes").children].indexOf(document.activeElement);
  page("nodes").replaceChildren(...buttons);
  page("nodes").children[focused]?.focus();
}

applyTheme();
