// The page's charts, drawn by Plotly. A chart whose data and colours are as before is left alone.

import { colorscale, css, element, number, plain, scaleColour, scales, short, shortModule } from "./format.js";
import { FIGURES, figureText } from "./tables.js";

const CONFIG = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };
const UNKNOWN = "#8b939d"; // grey, on either paper
const FRESH_SECONDS = 60;
const drawn = new WeakMap(); // chart's element -> what it shows

const isDark = () => document.documentElement.dataset.theme === "dark";

function plot(place, traces, layout) {
  const full = {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 11, color: css("ink") },
    hoverlabel: { bgcolor: css("card"), bordercolor: css("soft"), font: { color: css("ink") } },
    dragmode: false, // so that a finger scrolls the page
    showlegend: false,
    ...layout,
  };
  const contents = JSON.stringify([traces, full]);
  if (drawn.get(place) === contents) return;
  drawn.set(place, contents);
  window.Plotly.react(place, traces, full, CONFIG);
}

// --- the graph -------------------------------------------------------------------------------------------------------

const pair = (a, b) => (a < b ? `${a} ${b}` : `${b} ${a}`);

/** Every edge that any of the nodes knows of; where they differ, as the selected one sees it. A link breaks for both ends. */
function knownEdges(nodes, selected, moment) {
  const edges = new Map();
  const broken = new Set();
  for (const { status } of nodes.filter((node) => node.status && !node.error)) {
    for (const peer of status.peers) if (peer.link !== "up") broken.add(pair(status.node_id, peer.node_id));
  }
  for (const node of [...nodes.filter((each) => each !== selected), selected]) {
    for (const peer of node?.status?.peers ?? []) {
      const ends = [node.status.node_id, peer.node_id];
      if (!edges.has(pair(...ends))) edges.set(pair(...ends), { ends, error: null });
    }
    for (const edge of node?.consensus?.graph ?? []) {
      const ends = [edge.node_id, edge.other_id];
      edges.set(pair(...ends), { ends, error: edge[`error_${moment}`] });
    }
  }
  return [...edges].map(([key, edge]) => ({ ...edge, live: !broken.has(key) }));
}

/** Every node that any of the nodes knows of. */
function knownNodes(nodes, selected) {
  const known = new Map();
  for (const node of [...nodes.filter((each) => each !== selected), selected]) {
    for (const peer of node?.status?.peers ?? []) {
      if (!known.has(peer.node_id)) known.set(peer.node_id, { name: peer.name });
    }
    for (const { node_id: id, name, round, age_seconds: age } of node?.consensus?.nodes ?? []) {
      known.set(id, { ...known.get(id), name, round, stale: known.get(id)?.down || age >= FRESH_SECONDS });
    }
    if (node?.status) {
      const { node_id: id, name, accuracy, round } = node.status;
      known.set(id, { ...known.get(id), name, accuracy, round, ...(node.error && { stale: true, down: true }) });
    }
  }
  return known;
}

/** A colour bar under the graph; the points that Plotly needs for one are not to be seen. */
function bar(title, colours, low, high, x) {
  return {
    x: [null], y: [null], mode: "markers", hoverinfo: "skip",
    marker: {
      color: [low], cmin: low, cmax: high, colorscale: colorscale(colours), showscale: true,
      colorbar: {
        orientation: "h", x, xanchor: "center", y: -0.02, yanchor: "top", len: 0.46, thickness: 9, outlinewidth: 0,
        title: { text: title, side: "top", font: { size: 11 } }, nticks: 5, tickfont: { size: 10 },
      },
    },
  };
}

export function drawGraph(place, note, state, selected) {
  const { error: errorScale, accuracy: accuracyScale } = scales(isDark());
  const places = state.places;
  const nodes = [...knownNodes(state.nodes, selected)].filter(([id]) => places[id]);
  const names = new Map(nodes.map(([id, node]) => [id, node.name]));
  const edges = knownEdges(state.nodes, selected, state.moment).filter(({ ends }) => ends.every((id) => places[id]));
  const errors = edges.map((edge) => edge.error).filter((error) => error !== null);
  const largest = Math.max(...errors, 0) || 1;

  const lines = edges.map(({ ends, live, error }) => ({
    x: ends.map((id) => places[id][0]), y: ends.map((id) => places[id][1]), mode: "lines", hoverinfo: "skip",
    line: {
      ...(error === null ? { color: UNKNOWN, width: 2 } : { color: scaleColour(errorScale, error / largest), width: 4 }),
      dash: live ? "solid" : "dot",
    },
  }));
  const middles = {
    x: edges.map(({ ends: [a, b] }) => (places[a][0] + places[b][0]) / 2),
    y: edges.map(({ ends: [a, b] }) => (places[a][1] + places[b][1]) / 2),
    mode: "markers", hoverinfo: "text", marker: { size: 22, opacity: 0, color: UNKNOWN },
    meta: "edges", customdata: edges.map(({ ends, error }) => [...ends, error]),
    hovertext: edges.map(({ ends, error, live }) => {
      const ends_ = ends.map((id) => plain(names.get(id) ?? id)).join(" – ");
      return `${ends_}<br>error ${error === null ? "not known" : number(error)}${live ? "" : "<br>no link now"}`;
    }),
  };
  const known = nodes.map(([, node]) => node.accuracy).filter((accuracy) => accuracy != null);
  const low = Math.max(0, Math.min(...known, 1) - 0.02);
  const high = Math.min(1, Math.max(...known, low + 0.05) + 0.02);
  const own = selected?.status?.node_id;
  const dots = {
    x: nodes.map(([id]) => places[id][0]), y: nodes.map(([id]) => places[id][1]), mode: "markers+text", hoverinfo: "text",
    meta: "nodes", customdata: nodes.map(([id, node]) => [id, node.accuracy ?? null]), cliponaxis: false,
    marker: {
      size: 26, color: nodes.map(([, { accuracy, stale }]) => {
        const colour = accuracy == null ? UNKNOWN : scaleColour(accuracyScale, (accuracy - low) / (high - low));
        return stale ? scaleColour([colour, css("card")], 0.7) : colour;
      }),
      line: { color: nodes.map(([id]) => (id === own ? css("ink") : css("card"))), width: nodes.map(([id]) => (id === own ? 3 : 2)) },
    },
    text: nodes.map(([, node]) => plain(node.name, 14)), textfont: { size: 12, shadow: `0 0 3px ${css("card")}, 0 0 3px ${css("card")}` },
    textposition: nodes.map(([id]) => (places[id][1] > -0.01 ? "top center" : "bottom center")),
    hovertext: nodes.map(([, node]) =>
      [plain(node.name, 60), node.round == null ? "not seen" : `round ${node.round}`, `accuracy ${number(node.accuracy)}`].join("<br>"),
    ),
  };
  const axis = { visible: false, fixedrange: true };
  const bars = [];
  if (errors.length) bars.push(bar(`edge error, ${state.moment} mix`, errorScale, 0, largest, 0.24));
  if (known.length) bars.push(bar("accuracy", accuracyScale, low, high, 0.76));
  plot(place, [...lines, middles, dots, ...bars], {
    margin: { l: 8, r: 8, t: 8, b: 62 }, hovermode: "closest",
    xaxis: { ...axis, range: [-1.45, 1.45] }, yaxis: { ...axis, range: [-1.28, 1.28] },
  });
  const grey = nodes.some(([, node]) => node.accuracy == null) ? " Grey nodes tell their accuracy to nobody, or have none yet." : "";
  note.textContent = nodes.length ? `Edge errors are estimated from sketches. Ringed: whose view this is. Pale: not heard of for a while. Dotted: no link now.${grey}` : "";
}

// --- by round --------------------------------------------------------------------------------------------------------

const CURVES = [
  ...["D", "V", "C"].map((name) => ({ id: name, title: name, series: [[name]] })),
  { id: "E", title: "E_A", hint: "dashes: E_B", series: [["E_A"], ["E_B", "dash"]] },
  { id: "amplification", title: "amplification", hint: "dots: of own edges", series: [["amplification"]], own: "amplification" },
  { id: "relative", title: "relative", series: [["relative"]], percent: true },
  { id: "edge_error", title: "edge error", hint: "each node's mean, before mix", nodes: "edge_error" },
  { id: "loss", title: "loss", hint: "each node's, in training", nodes: "loss" },
  { id: "accuracy", title: "accuracy", hint: "each node's, on held-out rows", nodes: "accuracy" },
];

let curvesOf = ""; // what the curves show: long histories are not gone through each second

export function drawCurves(place, state, selected) {
  const { key, status, consensus } = selected ?? {};
  const now = consensus?.[state.moment];
  const contents = JSON.stringify([
    state.news, state.nodes.map((node) => [node.key, node.name]), key, status?.rule, state.moment, isDark(), consensus?.round, now?.figures, now?.bars,
  ]);
  if (contents === curvesOf) return;
  curvesOf = contents;
  if (!place.children.length) {
    place.append(
      ...CURVES.map(({ id, title, hint }) => {
        const heading = element("h3", {}, `${title} `, element("small", {}, hint ?? ""));
        return element("figure", { title: FIGURES[id] }, heading, element("div", { class: "plot", id: `curve-${id}` }));
      }),
    );
  }
  const last = Math.max(1, ...[...state.history.values()].map((records) => records.at(-1)?.round ?? 0));
  for (const curve of CURVES) {
    const traces = curve.nodes ? perNode(curve.nodes, state) : ofFederation(curve, state, selected);
    const axis = { gridcolor: css("faint"), zeroline: false, fixedrange: true, tickfont: { size: 10 }, ticklabelstandoff: 4 };
    plot(document.getElementById(`curve-${curve.id}`), traces, {
      margin: { l: 48, r: 10, t: 8, b: 36 }, hovermode: "closest",
      xaxis: { ...axis, range: [0, last * 1.04], nticks: 6, title: { text: "round", font: { size: 10 }, standoff: 4 } },
      yaxis: { ...axis, rangemode: curve.nodes === "accuracy" ? "normal" : "tozero", nticks: 5, tickformat: curve.percent ? ".0%" : "" },
    });
  }
}

function points(records, read) {
  const known = records.map((record) => [record.round, read(record)]).filter(([, value]) => value != null);
  return { x: known.map(([round]) => round), y: known.map(([, value]) => value), mode: known.length > 1 ? "lines" : "markers" };
}

function ofFederation(curve, state, selected) {
  const records = state.history.get(selected?.key) ?? [];
  const colour = css(selected?.status?.rule === "freeze-a" ? "freeze-a" : "lora");
  const traces = curve.series.map(([name, dash]) => {
    // Of one node alone they are all 0, which says nothing about the federation.
    const trace = points(records, (record) => (record.nodes > 1 ? record[state.moment]?.[name] : null));
    return {
      ...trace, name, line: { color: colour, width: 2, dash: dash ?? "solid" }, marker: { color: colour, size: 5 },
      hoverinfo: "text", hovertext: trace.y.map((y, i) => `${name} ${figureText(name, y)}, round ${trace.x[i]}`),
    };
  });
  // The history tells how it was when each round ended; this is how it is now.
  const now = selected?.consensus?.[state.moment];
  for (const [name] of now ? curve.series : []) {
    const [value, bar] = [now.figures[name], now.bars[name]];
    traces.push({
      x: [selected.consensus.round], y: [value], mode: "markers", name: `${name} now`, marker: { color: colour, size: 7 },
      hoverinfo: "text", hovertext: `${name} now ${figureText(name, value)} ± ${figureText(name, bar)}`,
      error_y: { type: "data", array: [bar], color: colour, thickness: 1.2, width: 3, visible: Boolean(bar) },
    });
  }
  if (curve.own) {
    const trace = points(records, (record) => record[curve.own]);
    const hovertext = trace.y.map((y, i) => `own edges ${number(y)}, round ${trace.x[i]}`);
    traces.push({ ...trace, name: "own edges", hoverinfo: "text", hovertext, line: { color: css("soft"), width: 1.5, dash: "dot" }, marker: { color: css("soft"), size: 4 } });
  }
  return traces;
}

function perNode(name, state) {
  const ordered = [...state.nodes].sort((a, b) => (a.key === state.selected) - (b.key === state.selected)); // it lies on top
  return ordered.map((node) => {
    const trace = points(state.history.get(node.key) ?? [], (record) => record[name]);
    const colour = state.colours.get(node.key);
    const chosen = node.key === state.selected;
    const label = plain(node.name);
    return {
      ...trace, name: label, hoverinfo: "text", hovertext: trace.y.map((y, i) => `${label} ${number(y)}, round ${trace.x[i]}`),
      line: { color: colour, width: chosen ? 2.8 : 1.4 }, marker: { color: colour, size: chosen ? 6 : 4 },
    };
  });
}

// --- by layer --------------------------------------------------------------------------------------------------------

/** The layers' product errors at each edge of the nodes that are asked, every edge once. */
function layerEdges(nodes, selected) {
  const edges = new Map();
  for (const node of [selected, ...nodes.filter((each) => each !== selected)]) {
    for (const edge of node?.consensus?.edges ?? []) {
      const key = pair(node.consensus.node_id, edge.node_id);
      if (!edges.has(key)) edges.set(key, { names: [node.consensus.name, edge.name], modules: node.consensus.modules, layers: edge.layers });
    }
  }
  return [...edges.values()];
}

export function drawLayers(place, note, state, selected) {
  const consensus = selected?.consensus;
  const modules = consensus?.modules ?? [];
  const figures = consensus?.[state.moment];
  place.parentElement.hidden = !modules.length || !figures;
  if (place.parentElement.hidden) return;
  const same = (other) => other.length === modules.length && other.every((module, i) => module === modules[i]);
  const edges = layerEdges(state.nodes, selected).filter((edge) => same(edge.modules));
  const columns = Object.keys(FIGURES).filter((name) => name !== "relative");
  const rows = modules.map((_, i) => i);
  const values = rows.map((i) => columns.map((name) => figures.layers[i][name]));
  const largest = columns.map((_, j) => Math.max(...values.map((row) => row[j])) || 1);
  const scale = colorscale([css("card"), ...scales(isDark()).error.slice(isDark() ? 0 : 1)]);
  const narrow = place.clientWidth < 600;
  const traces = [{
    type: "heatmap", meta: "figures", x: columns.map((_, j) => j), y: rows, customdata: values, xgap: 1, ygap: 1, showscale: false,
    z: values.map((row) => row.map((value, j) => value / largest[j])), zmin: 0, zmax: 1, colorscale: scale, hoverinfo: "text",
    hovertext: rows.map((i) => columns.map((name, j) => `${plain(shortModule(modules[i]), 80)}<br>${name} ${number(values[i][j])}`)),
  }];
  if (edges.length) {
    const errors = rows.map((i) => edges.map((edge) => edge.layers[i].product));
    traces.push({
      type: "heatmap", meta: "edges", x: edges.map((_, j) => j), y: rows, z: errors, xaxis: "x2", xgap: 1, ygap: 1, zmin: 0, zmax: Math.max(...errors.flat()) || 1, colorscale: scale,
      hoverinfo: "text", colorbar: { thickness: 9, outlinewidth: 0, tickfont: { size: 10 }, nticks: 5, len: 1, x: 1.01 },
      hovertext: rows.map((i) => edges.map(({ names }, j) => `${plain(shortModule(modules[i]), 80)}<br>${names.map((name) => plain(name)).join(" – ")} ${number(errors[i][j])}`)),
    });
  }
  const across = edges.map(({ names }) => names.map((name) => plain(name, 9)).join(" – "));
  const labels = Math.max(8, ...edges.map(({ names }) => names.map((name) => short(name, 9)).join(" – ").length)) * 5.6 + 16;
  const split = edges.length ? Math.min(0.7, Math.max(0.36, 6 / (6 + edges.length))) : 1;
  const ticks = (texts, angle) => ({ tickvals: texts.map((_, i) => i), ticktext: texts, tickangle: angle, showgrid: false, zeroline: false, fixedrange: true, tickfont: { size: 10 }, side: "top" });
  place.style.height = `${Math.max(160, 16 * rows.length + labels + 8)}px`;
  plot(place, traces, {
    margin: { l: narrow ? 92 : 150, r: edges.length ? 50 : 8, t: labels, b: 6 }, hovermode: "closest",
    xaxis: { ...ticks(columns.map((name) => (name === "amplification" ? "amplif." : name)), -90), domain: [0, split - 0.02] },
    xaxis2: { ...ticks(across, -90), domain: [split, 1] },
    yaxis: { ...ticks(modules.map((module) => plain(shortEnd(shortModule(module), narrow ? 15 : 26), 40)), 0), autorange: "reversed", side: "left" },
  });
  note.textContent =
    `Left: the federation's figures, ${state.moment} mix, each column from 0 to its own largest. ` +
    (edges.length ? "Right: ‖Pi − Pj‖ at edges, before mix, on the scale beside it." : "");
}

/** The end of a name, which tells modules apart. */
function shortEnd(name, longest) {
  return name.length <= longest ? name : `…${short(name.slice(1 - longest), longest)}`;
}
