// Uploads, and the text of a file that was edited: each a request whose body is the file.
const csrf = document.querySelector('meta[name="csrf"]').content;
const status = document.getElementById("status");

async function put(to, path, body) {
  const answer = await fetch(`${to}?path=${encodeURIComponent(path)}`, {
    method: "POST",
    headers: { "X-CSRF-Token": csrf, "Content-Type": "application/octet-stream" },
    body,
  });
  if (!answer.ok) throw new Error(await answer.text());
}

document.getElementById("upload")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { to, directory } = event.target.dataset;
  try {
    for (const file of document.getElementById("files").files) {
      status.textContent = `Uploading ${file.name} …`;
      await put(to, `${directory.replace(/\/$/, "")}/${file.name}`, file);
    }
    location.reload();
  } catch (error) {
    status.textContent = `Not uploaded: ${error.message}`;
  }
});

document.getElementById("edit")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await put(event.target.dataset.to, event.target.dataset.path, document.getElementById("text").value);
    status.textContent = "Saved.";
  } catch (error) {
    status.textContent = `Not saved: ${error.message}`;
  }
});
