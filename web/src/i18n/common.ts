// The texts of what the page and the public site share.
import { translator } from "./language";

const en = {
  cancel: "Cancel",
  copyCommand: "Copy the command",
  language: "Language",
  screenReader: "Screen reader",
  takeUp: "Continue here",
  terminal: "Terminal",
  terminalReplaced: "This shell is shown in another window.",
  theme: "Theme",
  themeDark: "Dark",
  themeLight: "Light",
  themeSystem: "As the system",
};

const ja: typeof en = {
  cancel: "キャンセル",
  copyCommand: "コマンドをコピー",
  language: "言語",
  screenReader: "スクリーンリーダー",
  takeUp: "ここで続ける",
  terminal: "ターミナル",
  terminalReplaced: "このシェルは別のウィンドウに表示されています。",
  theme: "テーマ",
  themeDark: "ダーク",
  themeLight: "ライト",
  themeSystem: "システムに従う",
};

export const common = { en, ja };
export const t = translator(common);
