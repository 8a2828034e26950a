/* Puts pages of the Dask dashboard beside the lesson that `workbench lab` opens, runs the cell of the
   panel in the start notebook, and hands the address of each new cluster to the pages.

   JupyterLab has no setting for that. This file is written by hand in the form that its builder
   gives to prebuilt extensions, and uses nothing but the application it is handed: no build step. */
(() => {
  const START = "00-start-here.ipynb";
  const STARTS = [START, `zh/${START}`]; // one for each language
  // The cell as we ship it, presets aside. What else a notebook holds is run by people only.
  const OURS = /^import workbench as wb\s+wb\.app\([^()]*\)\s*$/;
  // Not when the page is loaded again: a second panel would close the one that may be at work.
  const FRESH = "'workbench' not in __import__('sys').modules";

  const LESSON = /^(?:zh\/)?\d\d-[\w-]+\.ipynb$/;

  // The dashboard of the cluster that was opened last; an error while there is none.
  const LINK = "__import__('sys').modules['workbench.cluster.lab'].current_lab().dashboard_link";
  const LOOK_EVERY_MS = 2000;
  // So often after somebody has run a cell or used the panel: a cluster is there in seconds.
  const LOOKS = 30;
  const LOOKS_MORE = 2; // once there is one: it may be the one that is about to end
  // Narrower windows have no room for the file browser too, or for nothing but the notebook.
  const WIDE_PX = 1600;
  const ROOM_PX = 1000;
  // At this width the panel has two figures side by side; the pages keep 30 % of the window.
  const widthOfNotebook = (all_px) => Math.max(0.62 * all_px, Math.min(880, 0.7 * all_px));

  const valueOf = async (kernel, expression) => {
    const request = { code: "", silent: true, user_expressions: { value: expression } };
    const reply = await kernel.requestExecute(request).done;
    return reply.content.user_expressions?.value?.data?.["text/plain"];
  };
  const isFresh = async (kernel) => (await valueOf(kernel, FRESH)) === "True";
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  // Few: the pages that are open are drawn by the process that also runs the panel.
  const PANES = [
    { name: "speedup", label: "Workbench Speedup", mode: "split-right" },
    { name: "timeline", label: "Workbench Timeline", mode: "split-bottom" },
  ];

  /* Puts the pages beside a lesson. They wait there for a cluster: to make room once it is up would
     have everything drawn anew while the first run goes on. */
  const openPages = async (app, panel) => {
    if (!app.commands.hasCommand("dask:launch-dashboard")) return;
    if (window.innerWidth < WIDE_PX) app.shell.collapseLeft?.();
    let ref = panel.id;
    for (const { name, label, mode } of PANES) {
      const item = { route: `/individual-workbench-${name}`, label, key: label };
      const options = { mode: window.innerWidth < ROOM_PX ? "tab-after" : mode, ref, activate: false };
      const pane = await app.commands.execute("dask:launch-dashboard", { item, options });
      ref = pane?.id ?? ref;
    }
    await pause(300); // until all have their sizes
    const dock = panel.parent;
    for (const handle of dock?.handles?.() ?? [])
      if (handle.dataset.orientation === "horizontal")
        dock.layout.moveHandle(handle, widthOfNotebook(dock.node.offsetWidth), 0);
  };

  /* Hands every new cluster's address to the pages. Looks only for a while after somebody has done
     something in the notebook, and is in no cell's way. */
  const follow = (app, kernel) => {
    if (!app.commands.hasCommand("dask:populate-dashboard-url")) return;
    let [looks, looking, known] = [0, false, ""];
    const look = async () => {
      looks = LOOKS;
      if (looking) return;
      looking = true;
      while (looks > 0 && !kernel.isDisposed) {
        await pause(LOOK_EVERY_MS);
        if (kernel.status !== "idle") continue;
        const link = await valueOf(kernel, LINK);
        looks = Math.min(looks - 1, link ? LOOKS_MORE : LOOKS);
        if (!link || link === known) continue;
        known = link;
        await app.commands.execute("dask:populate-dashboard-url", { url: link.slice(1, -1) });
      }
      looking = false;
    };
    const isDeed = ({ header, content }) =>
      header.msg_type === "comm_msg" || (header.msg_type === "execute_request" && !content.silent);
    kernel.anyMessage.connect((_, { msg, direction }) => {
      if (direction === "send" && isDeed(msg)) look().catch(() => (looking = false));
    });
    look().catch(() => (looking = false));
  };

  /* Runs the panel's cell in the start notebook. */
  const start = async (app, panel) => {
    const cells = panel.content.widgets;
    const index = cells.findIndex((cell) => cell.model.type === "code");
    const ours = () => OURS.test(cells[index]?.model.sharedModel.getSource() ?? "");
    // The command takes the cell that is active, which people may have changed meanwhile.
    if (!ours() || app.shell.currentWidget !== panel) return;
    panel.content.activeCellIndex = index;
    await app.commands.execute("notebook:run-cell");
    // A page that is loaded again then finds the panel in the notebook, as it is now.
    if (panel.context.canSave) await panel.context.save();
  };

  const plugin = {
    id: "dask-workbench:open-panel",
    description: "Runs the cell of the panel in the start notebook, once, and puts pages beside lessons.",
    autoStart: true,
    activate: (app) => {
      const seen = new Set(); // each notebook is looked at once per page
      const consider = async () => {
        const panel = app.shell.currentWidget;
        const path = panel?.context?.path ?? "";
        if (!LESSON.test(path) || !panel.sessionContext || seen.has(path)) return;
        const first = seen.size === 0;
        seen.add(path);
        await panel.context.ready;
        await panel.sessionContext.ready;
        const kernel = panel.sessionContext.session?.kernel;
        if (!kernel) return;
        if (first && (await isFresh(kernel))) {
          await openPages(app, panel);
          if (STARTS.includes(path)) await start(app, panel);
        }
        follow(app, kernel);
      };
      const watch = () => consider().catch((error) => console.warn("No panel by itself:", error));
      app.shell.currentChanged?.connect(watch);
      void app.restored.then(watch);
    },
  };

  window._JUPYTERLAB ??= {};
  window._JUPYTERLAB["dask-workbench"] = {
    init: () => {}, // no module is shared in either direction
    get: async () => () => ({ __esModule: true, default: plugin }),
  };
})();
