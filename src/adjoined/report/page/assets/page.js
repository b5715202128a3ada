// The page works without this script, which only adds a button to override the system's theme.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const kept = () => { try { return localStorage.getItem("adjoined-theme"); } catch { return null; } };
  const keep = (theme) => { try { localStorage.setItem("adjoined-theme", theme); } catch { /* not allowed here */ } };
  let theme = kept();
  const isDark = () => (theme ? theme === "dark" : system.matches);
  const show = () => {
    if (theme) root.dataset.theme = theme;
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Change to the ${isDark() ? "light" : "dark"} theme`);
  };
  button.addEventListener("click", () => { theme = isDark() ? "light" : "dark"; keep(theme); show(); });
  system.addEventListener("change", show);
  button.hidden = false;
  show();
})();
