// Limits of I/O and device profiles: what they are in words, and the dialogs that set them.

import { change, data } from "./daemon.js";
import { ask } from "./dialog.js";
import { exactSize, parseSize, size } from "./dom.js";

// Each limit: its name, what it counts, and whether that is bytes.
const LIMITS = [
  ["iops", "Operations", "operations", false],
  ["read_iops", "Reads", "reads", false],
  ["write_iops", "Writes", "writes", false],
  ["bps", "Bytes", "", true],
  ["read_bps", "Bytes read", "read", true],
  ["write_bps", "Bytes written", "written", true],
];

// "500 operations/s, bursts of 2000/s for 30 s", for each limit that there is.
export function limitTexts(limits) {
  return LIMITS.filter(([name]) => limits?.[name]).map(([name, , what, inBytes]) => {
    const { per_second: rate, burst, burst_seconds: seconds } = limits[name];
    const amount = (number) => (inBytes ? size(number) : `${number}`);
    const text = [`${amount(rate)}${inBytes ? "/s" : ""}`, what].filter((one) => one).join(" ")
      + (inBytes ? "" : "/s");
    if (burst === null) return text;
    return seconds === 1 ? `${text}, ${amount(burst)} at once`
      : `${text}, bursts of ${amount(burst)}/s for ${seconds} s`;
  });
}

// What a volume or a tenant is held to, in words; null: to nothing, and nobody has said so.
export function held({ limits, own_limits: own }) {
  const texts = limitTexts(limits);
  if (!texts.length) return own ? "none" : null;
  const each = limits.iops_size ? `; one operation is up to ${size(limits.iops_size)}` : "";
  return `${texts.join("; ")}${each}${own ? "" : " (the default)"}`;
}

function number(text, title, inBytes) {
  const found = inBytes ? (/[kmgtb]/i.test(text) ? parseSize(text) : NaN)
    : /^\s*\d+\s*$/.test(text) ? Number(text) : NaN;
  if (!Number.isNaN(found)) return found;
  throw new Error(inBytes ? `${title}: ${text} is no number of bytes: write 50 MiB.`
    : `${title}: ${text} is no number: write 500.`);
}

// One row of the form: the rate, and its burst.
function row([name, title, , inBytes], limits) {
  const there = limits?.[name] ?? null;
  const shown = (value) => (value === null || value === undefined ? "" : inBytes ? exactSize(value) : `${value}`);
  return {
    legend: title,
    fields: [
      { name, label: "In a second", value: shown(there?.per_second) },
      { name: `${name}_burst`, label: "Burst", value: shown(there?.burst) },
      {
        name: `${name}_seconds`, label: "Seconds", inputmode: "numeric",
        value: there?.burst ? `${there.burst_seconds}` : "",
      },
    ],
  };
}

// The limits that the form says. Throws what is to be told.
function limitsOf(given) {
  const limits = {};
  for (const [name, title, , inBytes] of LIMITS) {
    const [rate, burst, seconds] = [given[name], given[`${name}_burst`], given[`${name}_seconds`]]
      .map((text) => text.trim());
    if (!rate && (burst || seconds)) throw new Error(`${title}: a burst needs the limit, too.`);
    if (seconds && !burst) throw new Error(`${title}: say how much a burst may be.`);
    if (!rate) continue;
    limits[name] = {
      per_second: number(rate, title, inBytes),
      burst: burst ? number(burst, title, inBytes) : null,
      burst_seconds: seconds ? number(seconds, title, false) : 1,
    };
  }
  if (!Object.keys(limits).length) throw new Error("Give a limit, or choose that there is none.");
  if (given.iops_size.trim()) limits.iops_size = number(given.iops_size, "One operation", true);
  return limits;
}

function askLimits(title, text, { limits, own_limits: own }, act) {
  const now = held({ limits, own_limits: own }) ?? "none";
  return ask(title, {
    text: [text, `Now: ${now}.`, "A burst without seconds may come at once. Bytes are as 50 MiB."],
    fields: [
      {
        name: "which", label: "Limits",
        options: [["Those below", "own"], ["None", "none"], ["Those of the configuration", "default"]],
      },
      ...LIMITS.map((one) => row(one, limits)),
      {
        name: "iops_size", label: "One operation is up to",
        value: limits?.iops_size ? exactSize(limits.iops_size) : "",
        hint: "As 16 KiB; empty: a request of any size is one",
      },
    ],
    button: "Set limits",
    act: (given) =>
      act(given.which === "default" ? null : given.which === "none" ? {} : limitsOf(given)),
  });
}

export const limitVolume = (volume) => askLimits(`Limits of ${volume.name}`,
  "All its clients together, at once and until it is said otherwise.", volume,
  (limits) => change("limit-volume", { tenant: volume.tenant, volume: volume.id, limits }));

export const limitTenant = (tenant) => askLimits(`Limits of tenant ${tenant.name}`,
  "All volumes of the tenant together, each within its own limits.", tenant,
  (limits) => change("limit-tenant", { tenant: tenant.id, limits }));

const [OFF, OWN] = ["off", "own"];

function documentOf(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new Error(`What stands there is no JSON: ${error.message}`);
  }
}

export async function profileVolume(volume) {
  const [{ profiles }, { profile }] = await Promise.all([
    data("choices"), data(`profile?volume=${volume.id}`),
  ]);
  const options = profiles.map((one) => [one, `=${one}`]);
  return ask(`Device profile of ${volume.name}`, {
    text: [
      "It is as slow as that device, and fails like it, at once and until it is said otherwise. Its data is never "
        + "touched: a request that fails was not carried out.",
      `Now: ${profile ? `${profile.name}, seed ${profile.seed ?? 0}` : "itself"}.`,
    ],
    fields: [
      {
        name: "device", label: "Device", value: OFF,
        options: [["Itself: no profile", OFF], ...options, ["The one below", OWN]],
      },
      { name: "seed", label: "Seed", inputmode: "numeric", hint: "Of what is random; empty: the profile's own" },
      {
        name: "document", label: "A profile of your own, as JSON", type: "textarea",
        value: profile ? JSON.stringify(profile, null, 1) : "",
        hint: "Filled with the one that it has",
      },
    ],
    button: "Set profile",
    act: ({ device, seed, document }) => change("profile-volume", {
      tenant: volume.tenant,
      volume: volume.id,
      profile: device === OFF ? null : device === OWN ? documentOf(document) : device.slice(1),
      seed: device !== OFF && seed.trim() ? number(seed, "Seed", false) : null,
    }),
  });
}
