/* Runs the cell of the panel when `workbench lab` opens the start notebook, and hands the address of
   the Dask dashboard to the Dask pane once there is a cluster.

   JupyterLab has no setting for that. This file is written by hand in the form that its builder
   gives to prebuilt extensions, and uses nothing but the application it is handed: no build step. */
(() => {
  const START = "00-start-here.ipynb";
  const STARTS = [START, `zh/${START}`]; // one for each language
  // The cell as we ship it, presets aside. What else a notebook holds is run by people only.
  const OURS = /^import workbench as wb\s+wb\.app\([^()]*\)\s*$/;
  // Not when the page is loaded again: a second panel would close the one that may be at work.
  const FRESH = "'workbench' not in __import__('sys').modules";

  // The dashboard of the cluster that was opened last; an error while there is none.
  const LINK = "__import__('sys').modules['workbench.cluster.lab'].current_lab().dashboard_link";
  const LOOK_EVERY_MS = 2000;
  // Narrower windows have no room beside the panel: there the layout is opened from the File menu.
  const WIDE_PX = 1600;

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

  const showDashboard = async (app, kernel, panel) => {
    const { commands } = app;
    if (!commands.hasCommand("dask:populate-dashboard-url")) return;
    let link;
    while (!link) {
      await pause(LOOK_EVERY_MS);
      if (kernel.isDisposed) return;
      if (kernel.status === "idle") link = await valueOf(kernel, LINK); // never in a cell's way
    }
    await commands.execute("dask:populate-dashboard-url", { url: link.slice(1, -1) });
    for (let tries = 0; !commands.isEnabled("dask:launch-layout") && tries < 10; tries++) {
      await pause(LOOK_EVERY_MS / 2); // the pane asks whether there is a dashboard
    }
    if (window.innerWidth < WIDE_PX || panel.isDisposed) return;
    let ref = null;
    for (const { name, label, mode } of PANES) {
      const item = { route: `/individual-workbench-${name}`, label, key: label };
      const pane = await commands.execute("dask:launch-dashboard", { item, options: { mode, ref } });
      ref = pane.id;
    }
    app.shell.activateById(panel.id);
  };

  const plugin = {
    id: "dask-workbench:open-panel",
    description: "Runs the cell of the panel in the start notebook, once.",
    autoStart: true,
    activate: (app) => {
      let settled = false; // at most one try per page
      const consider = async () => {
        const panel = app.shell.currentWidget;
        if (settled || !STARTS.includes(panel?.context?.path) || !panel.sessionContext) return;
        settled = true;
        await panel.context.ready;
        await panel.sessionContext.ready;
        const kernel = panel.sessionContext.session?.kernel;
        const cells = panel.content.widgets;
        const index = cells.findIndex((cell) => cell.model.type === "code");
        const ours = () => OURS.test(cells[index]?.model.sharedModel.getSource() ?? "");
        if (!kernel || !ours() || !(await isFresh(kernel))) return;
        // The command takes the cell that is active, which people may have changed meanwhile.
        if (app.shell.currentWidget !== panel || !ours()) return;
        panel.content.activeCellIndex = index;
        await app.commands.execute("notebook:run-cell");
        // A page that is loaded again then finds the panel in the notebook, as it is now.
        if (panel.context.canSave) await panel.context.save();
        await showDashboard(app, kernel, panel);
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
