// What the first paint depends on, in a script of its own that the document waits for: language, theme, and whether
// the frame of the page is shown before its scripts have run. Strangers see no frame, but the form to sign in.
import { isPresumed } from "./api/session";
import { language } from "./i18n/language";
import { applyTheme } from "./theme";

document.documentElement.lang = language();
applyTheme();
if (isPresumed()) document.documentElement.dataset.caller = "presumed";
