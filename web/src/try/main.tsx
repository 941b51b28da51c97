// The public site where anyone tries Utsuwa: a terminal in a container of one's own, beside a tour.
import { render } from "preact";
import { language } from "../i18n/language";
import { applyTheme } from "../theme";
import { App } from "./app";

document.documentElement.lang = language();
applyTheme();
const root = document.getElementById("app");
if (root) render(<App />, root);
