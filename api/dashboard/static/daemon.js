// What the daemon is asked, and what it answers.

export class Refusal extends Error {}

async function ask(method, path, body) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Refusal("The daemon does not answer. Is it running?");
  }
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refusal(found.error?.message ?? `The daemon answered ${answer.status}.`);
  return found;
}

export const data = (path) => ask("GET", `/data/${path}`);
export const change = (what, body) => ask("POST", `/do/${what}`, body);
export const leave = () => ask("POST", "/leave", {});

// Counters of the last minutes, sampled once a second, for each volume and snapshot that is open.
export class History {
  static KEPT = 120;

  constructor() {
    this.last = null;
    this.rates = new Map();
    this.total = [];
  }

  // Take one sample; rates are the difference to the one before.
  add(activity) {
    const counters = new Map(activity.exports.map((one) => [`${one.kind}-${one.id}`, one]));
    const seconds = this.last === null ? 0 : activity.at - this.last.at;
    if (seconds > 0) {
      const sum = { readBytes: 0, writtenBytes: 0, reads: 0, writes: 0 };
      for (const [key, now] of counters) {
        const before = this.last.counters.get(key);
        const rates = ratesBetween(before, now, seconds);
        for (const name of Object.keys(sum)) sum[name] += rates[name];
        keep(this.rates, key, rates);
      }
      for (const key of this.rates.keys()) if (!counters.has(key)) this.rates.delete(key);
      this.total = [...this.total, sum].slice(-History.KEPT);
    }
    if (seconds > 0 || this.last === null) this.last = { at: activity.at, counters };
  }

  of(kind, id) {
    return this.rates.get(`${kind}-${id}`) ?? [];
  }

  // The latest rates of one; null while nobody has it open.
  now(kind, id) {
    return this.of(kind, id).at(-1) ?? null;
  }
}

// A counter that went back began again at 0, when the volume was opened anew.
function ratesBetween(before, now, seconds) {
  const rate = (name) => {
    const then = before?.[name] ?? 0;
    return (now[name] >= then ? now[name] - then : now[name]) / seconds;
  };
  return {
    readBytes: rate("read_bytes"),
    writtenBytes: rate("written_bytes"),
    reads: rate("reads"),
    writes: rate("writes"),
    flushes: rate("flushes"),
    p50: now.latency_p50_us,
    p99: now.latency_p99_us,
    p999: now.latency_p999_us,
    errors: now.errors,
    connections: now.connections,
  };
}

function keep(map, key, value) {
  map.set(key, [...(map.get(key) ?? []), value].slice(-History.KEPT));
}
