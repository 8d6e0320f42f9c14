// The page's texts and tables. Cells carry the exact value beside the rounded one, as data-value.

import { bytes, element, number, percent, seconds, short, valued } from "./format.js";

const FRESH_SECONDS = 60;
export const FIGURES = {
  D: "mean distance of the nodes' updates BA from the product of the mean factors",
  V: "spread of the updates BA",
  C: "cross term: what averaging A and B apart adds",
  E_A: "spread of A",
  E_B: "spread of B",
  amplification: "spread of BA for each unit of spread in A and B",
  relative: "V beside the update itself",
};
const NEIGHBOUR = { // columns; on phones each cell has its heading beside it
  link: "link",
  weight: "weight",
  age: "snapshot",
  product: "‖Pi − Pj‖",
  a: "‖Ai − Aj‖",
  b: "‖Bi − Bj‖",
  bytes: "sent / received",
};
export const figureText = (name, value) => (name === "relative" ? percent(value) : number(value));

export function fillFacts(federation, setup, facts, node) {
  const status = node?.status;
  const consensus = node?.consensus;
  federation.textContent = status?.federation ?? "ConLoRA";
  document.title = status ? `${status.federation} · ConLoRA` : "ConLoRA";
  setup.textContent = status ? [status.rule, status.mode, `seen by ${short(status.name)}`].join(" · ") : "";
  if (!status) return facts.replaceChildren();
  const rows = [
    ["state", status.state, node.error ? "down" : status.state],
    ["round", status.round, `${status.round} of ${status.rounds}`],
    ["nodes", consensus?.nodes.length, consensus?.nodes.length ? String(consensus.nodes.length) : "–"],
    ["loss", status.loss, number(status.loss)],
    ["accuracy", status.accuracy, number(status.accuracy)],
    ["lambda", consensus?.rho, number(consensus?.rho), "λ"],
    ["s", consensus?.s, consensus?.s == null && consensus?.rho === 1 ? "∞" : number(consensus?.s)],
  ];
  facts.className = node.error ? "stale" : "";
  facts.replaceChildren(
    ...rows.map(([name, value, text, label]) =>
      element("div", {}, element("dt", {}, label ?? name), valued("dd", value, { "data-fact": name }, text)),
    ),
  );
}

export function fillFigures(table, note, node, moment) {
  const consensus = node?.consensus;
  if (!consensus?.after || !consensus.before) {
    table.replaceChildren();
    note.textContent = node?.status ? "No sketches yet: these figures come with the first mix." : "";
    return;
  }
  const rows = Object.entries(FIGURES).map(([name, meaning]) => {
    const cells = ["before", "after"].map((when) => {
      const value = consensus[when].figures[name];
      const bar = consensus[when].bars[name];
      const attributes = { "data-figure": name, "data-moment": when, "data-bar": bar, class: when === moment ? "shown" : "" };
      return valued("td", value, attributes, figureText(name, value), element("small", {}, bar ? ` ± ${figureText(name, bar)}` : ""));
    });
    return element("tr", {}, element("th", { scope: "row" }, name, element("small", {}, meaning)), ...cells);
  });
  table.replaceChildren(heading("", "before mix", "after mix"), element("tbody", {}, ...rows));
  const fresh = consensus.nodes.filter((other) => other.age_seconds < FRESH_SECONDS).length;
  note.textContent =
    `Estimated by ${short(node.name)} from sketches of ${consensus.nodes.length} nodes, ${fresh} of them fresh. ` +
    "± two standard errors.";
}

export function fillNeighbours(table, node) {
  const edges = new Map((node?.consensus?.edges ?? []).map((edge) => [edge.node_id, edge]));
  const rows = (node?.status?.peers ?? []).map((peer) => {
    const edge = edges.get(peer.node_id);
    const cell = (field, value, text) =>
      valued("td", value, { "data-peer": peer.name, "data-field": field, "data-label": NEIGHBOUR[field] }, text);
    const why = peer.link === "up" ? "" : peer.last_error;
    return element(
      "tr",
      { class: peer.link === "up" ? "" : "stale" },
      element("td", { class: "name", title: peer.name }, peer.name),
      cell("link", peer.link, peer.link),
      cell("weight", peer.weight, number(peer.weight)),
      cell("age", peer.snapshot_age_seconds, peer.snapshot_round === null ? "–" : `${seconds(peer.snapshot_age_seconds)}, round ${peer.snapshot_round}`),
      cell("product", edge?.error.product, number(edge?.error.product)),
      cell("a", edge?.error.a, number(edge?.error.a)),
      cell("b", edge?.error.b, number(edge?.error.b)),
      cell("bytes", peer.bytes_sent, `${bytes(peer.bytes_sent)} / ${bytes(peer.bytes_received)}`),
      element("td", { class: "why" }, why),
    );
  });
  table.replaceChildren(heading("neighbour", ...Object.values(NEIGHBOUR), ""), element("tbody", {}, ...rows));
}

export function fillMembers(table, node, moment) {
  const members = [...(node?.consensus?.nodes ?? [])].sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  const rows = members.map((member) => {
    const cell = (field, value, text) => valued("td", value, { "data-member": member.name, "data-field": field }, text);
    return element(
      "tr",
      { class: member.age_seconds < FRESH_SECONDS ? "" : "stale" },
      element("td", { class: "name", title: `${member.name}, ${member.node_id}` }, member.name),
      cell("round", member.round, String(member.round)),
      cell("age", member.age_seconds, seconds(member.age_seconds)),
      cell("distance", member[`distance_${moment}`], number(member[`distance_${moment}`])),
    );
  });
  const distance = `from the mean, ${moment} mix`;
  table.replaceChildren(heading("node", "round", "age", distance), element("tbody", {}, ...rows));
}

function heading(...names) {
  return element("thead", {}, element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name))));
}

