// The entry: exchanges the link's secret for a session. The secret stands behind #, which a browser
// sends to nobody, so it is in no log and in no Referer.

const secret = location.hash.slice(1);
history.replaceState(null, "", location.pathname);
const said = document.getElementById("said");
try {
  const answer = await fetch("/enter", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ link: secret }),
  });
  if (answer.ok) {
    location.replace("/");
  } else {
    said.textContent = (await answer.json()).error.message;
  }
} catch {
  said.textContent = "The daemon does not answer. Is it running?";
}
