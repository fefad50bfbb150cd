// What an operator does with volumes and snapshots: a dialog each.

import { change, data } from "./daemon.js";
import { ask } from "./dialog.js";
import { parseSize, size } from "./dom.js";

function bytesOf(text) {
  const bytes = parseSize(text);
  if (Number.isNaN(bytes)) throw new Error(`${text} is no size: write 10 GiB, or 512 MiB.`);
  return bytes;
}

const NAME = { name: "name", label: "Name", required: true };
const SIZE = { name: "size", label: "Size", hint: "As 10 GiB or 512 MiB", required: true };

// What deleting something gives back, in words.
async function freed(kind, id) {
  try {
    const space = await data(`space?kind=${kind}&id=${id}`);
    return `It holds ${size(space.exclusive_bytes)} that nothing else shows, which deleting it for good frees.`;
  } catch (error) {
    return `What it holds alone is not known: ${error.message}`;
  }
}

export async function createVolume(tenants) {
  const { images } = await data("choices");
  return ask("New volume", {
    fields: [
      { name: "tenant", label: "Tenant", options: tenants.map((one) => [one.name, one.id]) },
      NAME,
      { ...SIZE, required: false, hint: "As 10 GiB; with an image it may be left out" },
      { name: "image", label: "Image", options: [["none", ""], ...images.map((one) => [one.name, one.id])] },
    ],
    button: "Create",
    act: (given) => change("create-volume", {
      tenant: given.tenant,
      name: given.name,
      size_bytes: given.size ? bytesOf(given.size) : null,
      image: given.image || null,
    }),
  });
}

export const takeSnapshot = (volume) => ask(`Snapshot of ${volume.name}`, {
  text: ["It holds every write that was answered until now. Clients may go on."],
  fields: [NAME],
  button: "Take snapshot",
  act: ({ name }) => change("snapshot", { tenant: volume.tenant, volume: volume.id, name }),
});

export const clone = (volume) => ask(`Clone of ${volume.name}`, {
  text: ["A snapshot is taken, and a new volume begins as a copy of it. No data is copied."],
  fields: [{ ...NAME, label: "Name of the new volume" }],
  button: "Clone",
  act: async ({ name }) => {
    const { tenant } = volume;
    const taken = await change("snapshot", { tenant, volume: volume.id, name: `${name}-origin` });
    await change("create-volume", { tenant, name, snapshot: taken.id });
  },
});

export const createFrom = (snapshot) => ask(`New volume from ${snapshot.name}`, {
  fields: [{ ...NAME, label: "Name of the new volume" }],
  button: "Create",
  act: ({ name }) => change("create-volume", { tenant: snapshot.tenant, name, snapshot: snapshot.id }),
});

export const extend = (volume) => ask(`Extend ${volume.name}`, {
  text: [`It has ${size(volume.size_bytes)} now. Clients see the new size when they connect again.`],
  fields: [{ ...SIZE, label: "New size" }],
  button: "Extend",
  act: (given) => change("extend", {
    tenant: volume.tenant, volume: volume.id, size_bytes: bytesOf(given.size),
  }),
});

const confirmation = (name) =>
  ({ name: "name", label: `Type ${name} to confirm`, required: true, expected: name });

export const revert = (volume, snapshot) => ask(`Revert ${volume.name} to ${snapshot.name}`, {
  text: ["What was written since that snapshot, and is in no other one, is lost. This cannot be undone."],
  fields: [confirmation(volume.name)],
  button: "Revert",
  dangerous: true,
  act: ({ name }) => change("revert", {
    tenant: volume.tenant, volume: volume.id, snapshot: snapshot.id, name,
  }),
});

export async function attach(volume) {
  const { servers } = await data("choices");
  const known = servers.filter((one) => one.tenant === null || one.tenant === volume.tenant);
  return ask(`Attach ${volume.name}`, {
    fields: [
      {
        name: "server", label: "Server", required: true,
        hint: known.length ? `Registered: ${known.map((one) => one.name).join(", ")}` : "An id of yours",
      },
      { name: "device", label: "Device", hint: "As /dev/vdc; empty: the next free one" },
    ],
    button: "Attach",
    act: (given) => change("attach", {
      tenant: volume.tenant, volume: volume.id, server: given.server, device: given.device || null,
    }),
  });
}

export const detach = (volume) => ask(`Detach ${volume.name} from ${volume.server}`, {
  text: ["Its clients get a moment to have their requests answered. All that was answered stays."],
  fields: [{ name: "force", label: "Cut connections at once", type: "checkbox" }],
  button: "Detach",
  act: ({ force }) => change("detach", {
    tenant: volume.tenant, volume: volume.id, server: volume.server, force,
  }),
});

export const reopen = (volume) => ask(`Reopen ${volume.name}`, {
  text: [volume.error ?? "", "Writes since the last flush that succeeded may be lost."],
  button: "Reopen",
  dangerous: true,
  act: () => change("reopen", { tenant: volume.tenant, volume: volume.id }),
});

// What becomes of what is deleted, in words.
function fate(keepSeconds) {
  if (!keepSeconds) return "This cannot be undone.";
  const hours = keepSeconds / 3600;
  return `It is kept in the trash for ${hours % 24 ? `${hours} hours` : `${hours / 24} days`}.`;
}

// Bring something back from the trash; it has its id again.
export const restore = async ({ tenant, id }) => {
  await change("restore", { tenant, node: id });
  return true;
};

// Delete by way of `what`; if the trash has it then, that can be undone.
async function deleted(what, body, node) {
  const { kept } = await change(what, body);
  return kept ? { undo: { act: () => restore(node), said: `${node.name} is back.` } } : null;
}

export const deleteVolume = async (volume, keepSeconds) => ask(`Delete volume ${volume.name}`, {
  text: [await freed("volume", volume.id), `Its snapshots stay. ${fate(keepSeconds)}`],
  fields: [confirmation(volume.name)],
  button: "Delete",
  dangerous: true,
  act: ({ name }) =>
    deleted("delete-volume", { tenant: volume.tenant, volume: volume.id, name }, volume),
});

export const deleteSnapshot = async (snapshot, keepSeconds) => ask(`Delete snapshot ${snapshot.name}`, {
  text: [
    await freed("snapshot", snapshot.id),
    `Volumes that were made from it stay. ${fate(keepSeconds)}`,
  ],
  fields: [confirmation(snapshot.name)],
  button: "Delete",
  dangerous: true,
  act: ({ name }) =>
    deleted("delete-snapshot", { tenant: snapshot.tenant, snapshot: snapshot.id, name }, snapshot),
});

export const deleteForGood = (trashed) => ask(`Delete ${trashed.kind} ${trashed.name} for good`, {
  text: ["What it holds alone is free then. This cannot be undone."],
  fields: [confirmation(trashed.name)],
  button: "Delete",
  dangerous: true,
  act: ({ name }) => change("delete-for-good", { tenant: trashed.tenant, node: trashed.id, name }),
});
