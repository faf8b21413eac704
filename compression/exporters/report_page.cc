#include "compression/exporters/report_page.h"

#include <utility>

#include "compression/exporters/segments.h"

namespace nni_compression::compression {
namespace {

constexpr char kBeforeData[] = R"html(<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>Compression report</title>
<style>
  :root { --ink: #1d2733; --soft: #667385; --line: #dde3ea; --before: #b9c4d0; --after: #1f77b4;
          --paper: #fff; }
  @media (prefers-color-scheme: dark) {
    :root { --ink: #e4e9ef; --soft: #95a3b3; --line: #34404d; --before: #55636f; --after: #5aa9e0;
            --paper: #161c22; }
  }
  body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
         margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
  h1 { font-size: 1.6rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem }
  p, figcaption { color: var(--soft); margin: .3rem 0 }
  .tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin: 1.2rem 0 }
  .tile { border: 1px solid var(--line); border-radius: .5rem; padding: .6rem 1rem; min-width: 8rem }
  .tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums }
  .tile span { color: var(--soft); font-size: .85rem }
  .scroll { overflow-x: auto }
  table { border-collapse: collapse; width: 100% }
  th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid var(--line);
           white-space: nowrap; vertical-align: middle }
  th { color: var(--soft); font-weight: 600; font-size: .85rem }
  td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
  td.wrap { white-space: normal }
  tr.plain td { color: var(--soft) }
  svg { display: block; overflow: visible }
  .key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .3em 0 1em }
  pre { background: color-mix(in srgb, var(--line) 40%, transparent); padding: .8rem; overflow-x: auto;
        border-radius: .5rem; font-size: .85rem }
</style>
<h1>Compression report</h1>
<p id="about"></p>
<div class="tiles" id="totals"></div>
<div id="curves"></div>
<h2>Layers</h2>
<p>Weights<span class="key" style="background:var(--before)"></span>before
  <span class="key" style="background:var(--after)"></span>after; heights are square roots of
  counts, and peaks are cut where they would dwarf the rest.</p>
<div class="scroll"><table id="layers"></table></div>
<h2>What gets smaller, and what gets faster</h2>
<div class="scroll"><table id="gains"></table></div>
<h2>Rules</h2>
<pre id="rules"></pre>
<script type="application/json" id="report">)html";

constexpr char kAfterData[] = R"html(</script>
<script>
'use strict';
const report = JSON.parse(document.getElementById('report').textContent);
const pruner = report.kind === 'pruner';

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== undefined && text !== null) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
function drawn(name, attributes, ...children) {
  const made = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
const share = (x) => x == null ? '–' : (100 * x).toFixed(2) + ' %';
const number = (x) => x == null ? '–' : x === 0 ? '0' : Number(x.toPrecision(4)).toString();
const count = (x) => x.toLocaleString('en');
function bytes(x) {
  if (x == null) return '–';
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let unit = 0;
  for (; x >= 1000 && unit + 1 < units.length; x /= 1000) ++unit;
  return (unit ? x.toPrecision(3) : x) + ' ' + units[unit];
}
function noise(decibels, mse) {
  return decibels != null ? decibels.toFixed(1) + ' dB' : mse === 0 ? 'exact' : '–';
}

function histogram(of) {
  const width = 150, height = 36;
  const svg = drawn('svg', {width, height, role: 'img'},
    drawn('title', {}, `weights from ${number(of.minimum)} to ${number(of.maximum)}`));
  const top = Math.sqrt(2 * Math.max(1, ...of.before));
  const bar = width / of.before.length;
  const bars = (counts, paint, inset) => counts.forEach((c, i) => {
    if (c === 0) return;
    const h = height * Math.min(1, Math.sqrt(c) / top);
    svg.append(drawn('rect', {x: i * bar + inset * bar, y: height - h, height: h, fill: paint,
                              width: bar * (1 - 2 * inset)}));
  });
  bars(of.before, 'var(--before)', 0);
  bars(of.after, 'var(--after)', 0.25);
  svg.append(drawn('line', {x1: 0, x2: width, y1: height, y2: height, stroke: 'var(--line)'}));
  return svg;
}

function curve(of) {
  const width = 520, height = 140, left = 44, last = Math.max(1, ...of.epochs);
  const x = (e) => left + (width - left - 10) * e / last, y = (s) => 8 + (height - 30) * (1 - s);
  const svg = drawn('svg', {width, height, role: 'img'});
  const label = (at, text, anchor) =>
    drawn('text', {...at, fill: 'var(--soft)', 'font-size': 11, 'text-anchor': anchor}, text);
  for (const s of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(drawn('line', {x1: left, x2: width - 10, y1: y(s), y2: y(s), stroke: 'var(--line)'}),
               label({x: left - 6, y: y(s) + 4}, share(s).replace('.00', ''), 'end'));
  }
  const points = of.epochs.map((e, i) => [e, of.targets[i]]).filter((p) => p[1] != null);
  const path = (list) => list.map(([e, s], i) => `${i ? 'L' : 'M'}${x(e)},${y(s)}`).join('');
  svg.append(drawn('path', {d: path(points), fill: 'none', stroke: 'var(--before)', 'stroke-width': 2}));
  const followed = points.filter((p) => p[0] <= of.epoch);
  if (followed.length) {
    const [e, s] = followed[followed.length - 1];
    svg.append(drawn('path', {d: path(followed), fill: 'none', stroke: 'var(--after)', 'stroke-width': 3}),
               drawn('circle', {cx: x(e), cy: y(s), r: 4, fill: 'var(--after)'}));
  }
  svg.append(label({x: left, y: height - 6}, 'epoch 0', 'start'),
             label({x: width - 10, y: height - 6}, String(last), 'end'));
  return svg;
}

document.getElementById('about').textContent =
  `Algorithm ${report.algorithm}, a ${report.kind}, on ${report.framework}; at epoch ` +
  `${report.epoch} and step ${report.step}.`;

const totals = report.totals;
const masked = totals.achieved_sparsity != null;
const saved = totals.bytes_before ? 1 - totals.bytes_after / totals.bytes_before : 0;
const tiles = [
  [count(report.layers.filter((l) => l.compressed).length) + ' of ' + count(report.layers.length),
   'layers compressed'],
  [count(totals.elements), 'weights in them'],
  ...(masked ? [[share(totals.achieved_sparsity), 'of them removed']] : []),
  [`${bytes(totals.bytes_before)} → ${bytes(totals.bytes_after)}`, `on disk: ${share(saved)} less`],
  [noise(totals.sqnr_db, totals.mse), 'signal to noise of the weights'],
];
for (const [value, meaning] of tiles) {
  const tile = element('div', null, {class: 'tile'});
  tile.append(element('b', value), element('span', meaning));
  document.getElementById('totals').append(tile);
}

const curves = document.getElementById('curves');
if (report.curves.length) curves.append(element('h2', 'Sparsity over the epochs'));
for (const of of report.curves) {
  const figure = element('figure', null, {style: 'margin: 0 0 1rem'});
  figure.append(curve(of), element('figcaption',
    `rule ${of.rule}: what it asks for; the dark part was followed up to epoch ${of.epoch}`));
  curves.append(figure);
}

const columns = [
  ['layer', '', (l) => l.name], ['type', '', (l) => l.op_type],
  ['shape', '', (l) => l.shape.join(' × ')], ['dtype', '', (l) => l.dtype],
  ['rule', 'n', (l) => l.rule ?? '–'],
  ...(pruner ? [['target', 'n', (l) => share(l.target_sparsity)]] : []),
  ...(masked ? [[pruner ? 'achieved' : 'removed', 'n', (l) => share(l.achieved_sparsity)]] : []),
  ...(pruner ? [] : [['bits', 'n', (l) => l.bits ?? '–'], ['scale', 'n', scale]]),
  ...['output', 'input'].filter((kind) => report.layers.some((l) => l[kind]))
    .map((kind) => [kind + 's', '', (l) => encoding(l[kind])]),
  ['before', 'n', (l) => bytes(l.bytes_before)], ['after', 'n', (l) => bytes(l.bytes_after)],
  ['MSE', 'n', (l) => number(l.mse)], ['SQNR', 'n', (l) => l.compressed ? noise(l.sqnr_db, l.mse) : '–'],
  ['weights', '', (l) => l.histogram ? histogram(l.histogram) : l.compressed ? '' : 'not compressed'],
];
function encoding(of) {
  return of ? `${of.bits} bits, ${number(of.minimum)} … ${number(of.maximum)}, ` +
              `scale ${number(of.scale)}, zero ${of.zero_point}` : '–';
}
function scale(layer) {
  const s = layer.scale;
  if (!s || !s.count) return '–';
  return s.count === 1 ? number(s.minimum)
                       : `${number(s.minimum)} … ${number(s.maximum)} (${count(s.count)}` +
                         `${layer.group_size ? ', groups of ' + layer.group_size : ''})`;
}
function fill(table, heads, rows) {
  const row = (cells, name, kind) => {
    const made = element('tr', null, kind ? {class: kind} : {});
    cells.forEach(([value, style]) => {
      const cell = element(name, null, style ? {class: style} : {});
      cell.append(value);
      made.append(cell);
    });
    return made;
  };
  table.append(element('thead'), element('tbody'));
  table.tHead.append(row(heads, 'th'));
  for (const [cells, kind] of rows) table.tBodies[0].append(row(cells, 'td', kind));
}
fill(document.getElementById('layers'), columns.map((c) => [c[0], c[1]]),
  report.layers.map((l) => [columns.map((c) => [c[2](l), c[1]]), l.compressed ? '' : 'plain']));

const gains = pruner ? [
  ['safetensors, pth', 'nothing; zeros take as much room as numbers (they do compress well)',
   'nothing: dense kernels multiply zeros too'],
  ['sparse', 'the file: the kept weights and one bit for each', 'loading and copying the file'],
  ['masks', 'the masks: one bit a weight', 'nothing'],
] : [
  ['safetensors, pth', 'nothing; the values are floats again', 'nothing'],
  ['onnx', 'the model, to a byte a weight with up to 8 bits', 'integer kernels of ONNX Runtime, where it has them'],
  ['compressed-tensors', 'the file, and the weights in memory where the runtime keeps them packed',
   'runtimes with kernels for such weights, vLLM for one'],
];
fill(document.getElementById('gains'), [['exported as', ''], ['smaller', ''], ['faster', '']],
  gains.map((g) => [g.map((text) => [text, 'wrap']), '']));
document.getElementById('rules').textContent = JSON.stringify(report.config_list, null, 2);
</script>
</html>
)html";

}  // namespace

ExportFile ReportPage(Segment report) {
  ExportFile page("report.html", "text/html");
  page.Add(BytesSegment(kBeforeData));
  page.Add(std::move(report));
  page.Add(BytesSegment(kAfterData));
  return page;
}

}  // namespace nni_compression::compression
