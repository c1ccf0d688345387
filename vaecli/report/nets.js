// A decoder in JavaScript: layers with their weights (float32, row by row) from a latent vector to an image.
// Every layer takes and gives {data: Float32Array, shape: [C, H, W] or [N]}.
"use strict";

function weightsOf(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Float32Array(bytes.buffer);
}

function product(shape) { return shape.reduce((a, b) => a * b, 1); }

const POINTWISE = {
  relu: (v) => (v > 0 ? v : 0),
  "leaky-relu": (v, slope) => (v > 0 ? v : slope * v),
  tanh: Math.tanh,
  sigmoid: (v) => 1 / (1 + Math.exp(-v)),
  elu: (v) => (v > 0 ? v : Math.expm1(v)),
  silu: (v) => v / (1 + Math.exp(-v)),
  softplus: (v) => (v > 20 ? v : Math.log1p(Math.exp(v))),
  clamp: (v) => Math.min(1, Math.max(0, v)),
};

function linear(layer, x) {
  const [n, m] = layer.size, out = new Float32Array(n), w = layer.weight;
  for (let i = 0; i < n; i++) {
    let sum = layer.bias ? layer.bias[i] : 0;
    for (let j = 0, k = i * m; j < m; j++, k++) sum += w[k] * x.data[j];
    out[i] = sum;
  }
  return { data: out, shape: [n] };
}

function filled(layer, channels, height, width) {
  const out = new Float32Array(channels * height * width);
  if (layer.bias) for (let c = 0; c < channels; c++) out.fill(layer.bias[c], c * height * width, (c + 1) * height * width);
  return out;
}

function conv(layer, x) {
  const [C, H, W] = x.shape, [O, , K, L] = layer.size, [s, t] = layer.stride, [p, q] = layer.padding;
  const h = Math.floor((H + 2 * p - K) / s) + 1, w = Math.floor((W + 2 * q - L) / t) + 1;
  const out = filled(layer, O, h, w);
  for (let o = 0; o < O; o++) for (let c = 0; c < C; c++) for (let a = 0; a < K; a++) for (let b = 0; b < L; b++) {
    const weight = layer.weight[((o * C + c) * K + a) * L + b];
    for (let i = 0; i < h; i++) {
      const y = i * s - p + a;
      if (y < 0 || y >= H) continue;
      for (let j = 0, k = (o * h + i) * w; j < w; j++, k++) {
        const u = j * t - q + b;
        if (u >= 0 && u < W) out[k] += weight * x.data[(c * H + y) * W + u];
      }
    }
  }
  return { data: out, shape: [O, h, w] };
}

function transposed(layer, x) {
  const [C, H, W] = x.shape, [, O, K, L] = layer.size, [s, t] = layer.stride, [p, q] = layer.padding;
  const h = (H - 1) * s - 2 * p + K + layer.extra[0], w = (W - 1) * t - 2 * q + L + layer.extra[1];
  const out = filled(layer, O, h, w);
  for (let c = 0; c < C; c++) for (let o = 0; o < O; o++) for (let a = 0; a < K; a++) for (let b = 0; b < L; b++) {
    const weight = layer.weight[((c * O + o) * K + a) * L + b];
    for (let i = 0; i < H; i++) {
      const y = i * s - p + a;
      if (y < 0 || y >= h) continue;
      const row = (o * h + y) * w, from = (c * H + i) * W;
      for (let j = 0; j < W; j++) {
        const u = j * t - q + b;
        if (u >= 0 && u < w) out[row + u] += weight * x.data[from + j];
      }
    }
  }
  return { data: out, shape: [O, h, w] };
}

function resized(x, h, w) {  // to the nearest pixel, as torch does
  const [C, H, W] = x.shape, out = new Float32Array(C * h * w);
  for (let c = 0; c < C; c++) for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
    out[(c * h + i) * w + j] = x.data[(c * H + Math.floor((i * H) / h)) * W + Math.floor((j * W) / w)];
  }
  return { data: out, shape: [C, h, w] };
}

function padded(x, [left, right, top, bottom]) {  // negative: cut
  const [C, H, W] = x.shape, h = H + top + bottom, w = W + left + right, out = new Float32Array(C * h * w);
  for (let c = 0; c < C; c++) for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) {
    const y = i - top, u = j - left;
    if (y >= 0 && y < H && u >= 0 && u < W) out[(c * h + i) * w + j] = x.data[(c * H + y) * W + u];
  }
  return { data: out, shape: [C, h, w] };
}

function applied(layer, x) {
  const kind = layer.kind;
  if (kind in POINTWISE) return { data: x.data.map((v) => POINTWISE[kind](v, layer.slope)), shape: x.shape };
  if (kind === "linear") return linear(layer, x);
  if (kind === "conv") return conv(layer, x);
  if (kind === "transposed") return transposed(layer, x);
  if (kind === "shape") return { data: x.data, shape: layer.shape };
  if (kind === "flatten") return { data: x.data, shape: [product(x.shape)] };
  if (kind === "resize") {
    const [, H, W] = x.shape, [h, w] = layer.to || [H * layer.by[0], W * layer.by[1]];
    return resized(x, Math.floor(h), Math.floor(w));
  }
  if (kind === "pad") return padded(x, layer.borders);
  if (kind === "block") {  // x + what its layers make of it
    const y = run(layer.layers, x);
    return { data: x.data.map((v, i) => v + y.data[i]), shape: x.shape };
  }
  throw new Error("no layer is called " + kind);
}

function run(layers, x) { return layers.reduce((y, layer) => applied(layer, y), x); }

function ready(layers) {  // weights as arrays
  for (const layer of layers) {
    if (layer.layers) ready(layer.layers);
    for (const name of ["weight", "bias"]) if (typeof layer[name] === "string") layer[name] = weightsOf(layer[name]);
  }
  return layers;
}

function decoded(layers, z) { return run(layers, { data: Float32Array.from(z), shape: [z.length] }); }
