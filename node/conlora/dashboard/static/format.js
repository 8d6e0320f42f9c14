// Numbers, durations and names as text, elements, and colours. What peers may have chosen only ever becomes text.

/** Three significant digits; a dash where there is nothing. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

export function percent(value) {
  return value === null || value === undefined ? "–" : `${(value * 100).toFixed(1)} %`;
}

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 100) return `${value.toFixed(0)} s`;
  return value < 6000 ? `${(value / 60).toFixed(0)} min` : `${(value / 3600).toFixed(1)} h`;
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit += 1) value /= 1000;
  return `${unit ? value.toFixed(1) : value} ${units[unit]}`;
}

/** A name that does not burst a button or a picture. */
export function short(name, longest = 24) {
  return name.length <= longest ? name : `${name.slice(0, longest - 1)}…`;
}

/** For Plotly, which takes some HTML in texts for what it says. */
export function plain(name, longest) {
  return short(name, longest).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("$", "&#36;");
}

/** A module's name without what all of them begin with. */
export function shortModule(name) {
  return name
    .replace(/^base_model\.model\./, "")
    .replace(/\.(encoder\.)?layer(s?)\./, ".")
    .replace(/\.(attention\.self|self_attn)/, "");
}

/** An element with attributes; children that are strings become text. */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** A figure as the admin service told it, beside what is shown of it. */
export function valued(tag, value, attributes, ...children) {
  return element(tag, { ...attributes, "data-value": value ?? "" }, ...children);
}

// --- colours ---------------------------------------------------------------------------------------------------------

const VIRIDIS = ["#440154", "#443983", "#31688e", "#21918c", "#35b779", "#90d743", "#fde725"];

/** A shade for each node, of the part of viridis that stands out from the paper; as in the testbed's report. */
export function nodeColours(keys, dark) {
  const [low, high] = dark ? [0.35, 1] : [0, 0.88];
  const step = keys.length > 1 ? (high - low) / (keys.length - 1) : 0;
  return new Map(keys.map((key, i) => [key, scaleColour(VIRIDIS, low + i * step)]));
}

/** Where errors are: the colours of edges and of heat maps. Where accuracy is: those of nodes. */
export function scales(dark) {
  return dark
    ? { error: ["#4a3320", "#f0913a", "#ffe6c7"], accuracy: ["#173a52", "#56b4e9", "#e3f4ff"] }
    : { error: ["#f8d9b8", "#d55e00", "#5a2200"], accuracy: ["#cfe6f5", "#0072b2", "#00263f"] };
}

export function colorscale(colours) {
  return colours.map((colour, i) => [i / (colours.length - 1), colour]);
}

/** The colour at `share`, 0 to 1, of evenly spaced colours. */
export function scaleColour(colours, share) {
  const at = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
  const i = Math.min(Math.floor(at), colours.length - 2);
  const [from, to] = [colours[i], colours[i + 1]].map(parts);
  return `rgb(${from.map((part, k) => Math.round(part + (to[k] - part) * (at - i))).join(",")})`;
}

/** Red, green and blue of #rrggbb or rgb(r,g,b). */
function parts(colour) {
  if (!colour.startsWith("#")) return colour.match(/\d+/g).map(Number);
  return [1, 3, 5].map((k) => parseInt(colour.slice(k, k + 2), 16));
}

/** A colour of the style sheet. */
export function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
