// Runs inside a view before viser's client and says, in place of an empty scene, why the view gets no frames.
(() => {
  const ENOUGH = 2; // connections that fail before the reason is shown: one may fail by chance
  let failed = 0, seen = false, line = null;

  const show = (text) => {
    if (!line) {
      line = document.createElement("p");
      line.setAttribute("role", "alert");
      line.style.cssText = "position:fixed;inset:0;margin:auto;width:min(60ch,90%);height:fit-content;z-index:99;" +
        "font:14px/1.5 system-ui,sans-serif;color:#b3261e;background:#fff;padding:12px 16px;border-radius:8px";
      document.body.append(line);
    }
    line.textContent = `This view cannot connect. ${text}`;
  };
  const ask = async () => {
    try {
      const answer = await fetch("why", { cache: "no-store" });
      if (answer.ok && !seen) show(await answer.text());
    } catch { /* the page says that the server does not answer */ }
  };

  window.Worker = class extends window.Worker {
    constructor(...options) {
      super(...options);
      this.addEventListener("message", ({ data }) => { // of the worker that holds the connection
        if (data?.type === "connected") { seen = true; line?.remove(); }
        if (data?.type === "closed" && !seen && ++failed >= ENOUGH) ask();
      });
    }
  };
})();
