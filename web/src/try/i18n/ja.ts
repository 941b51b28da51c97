// The texts of the site in Japanese.
import type { en } from "./en";

export const ja: Record<keyof typeof en, string> = {
  accept: "利用条件に同意します",
  again: "もう一度始める",
  back: "戻る",
  begin: "始める",
  beginning: "コンテナを準備しています…",
  check: "確認",
  commandsHelp: "コマンドをクリックするとターミナルで実行されます。自分で入力してもかまいません。",
  done: "できました！",
  end: "終了",
  endAsk: "コンテナを中身ごとすべて削除します。元に戻すことはできません。",
  endTitle: "セッションを終了",
  endedGone: "セッションは終了しました",
  endedGoneHelp: "コンテナは削除されました。いつでももう一度始められます。",
  endedTime: "{minutes} 分の利用時間が終わりました",
  endedYou: "セッションを終了しました",
  feedback: "いかがでしたか？",
  feedbackHelp: "個人に関する情報は書かないでください。回答は、あなたと結び付けられることなく保存されます。",
  feedbackSend: "送信",
  feedbackText: "良かった点、足りなかった点 (任意)",
  feedbackThanks: "ありがとうございました。",
  finish: "完了",
  finished: "ツアーはこれで終わりです",
  finishedHelp:
    "全 {all} ステップのうち {done} ステップを完了しました。コンテナは、時間が終わるまで自由に使えます。",
  full: "現在、すべての席が使用中です。空きが出ると、このページに表示されます。",
  installHelp:
    "Debian 12 以降、または Ubuntu 24.04 で、リポジトリのクローンの中で root として実行してください。",
  installTitle: "インストールする",
  lead: "Utsuwa は、完全な Linux システムをコンテナで動かします。仮想マシンのように扱いやすく、プロセスのように軽量です。ここでは、Utsuwa の入ったマシンを root として {minutes} 分間使いながら、ツアーでひととおり体験できます。",
  leaveTerminal: "F6 でターミナルに出入りできます",
  look: "注目するところ",
  next: "次へ",
  nextStepsHelp:
    "ドキュメントは docs/first-steps.md から読み始めてください。このようなサイトの動かし方は docs/try.md にあります。",
  of: "ステップ {number} / {all}",
  places: "{most} 席中 {free} 席が空いています",
  pointDeleted:
    "終了後は、行ったことを含めてすべて削除されます。このページを閉じたまま {unseen} 分が過ぎた場合も、その時点で削除されます。",
  pointNothing: "インストールもアカウントも不要です。必要なのはブラウザーだけです。",
  pointTour:
    "最初のコンテナからスナップショット、イメージまで順に体験します。コマンドはクリックするか、自分で入力します。",
  progressOf: "{all} 中 {done} 完了",
  run: "ターミナルで実行:",
  star1: "悪い",
  star2: "やや悪い",
  star3: "普通",
  star4: "良い",
  star5: "とても良い",
  stars: "評価",
  stepDone: "{title} (完了)",
  steps: "ツアーのステップ",
  terms: "利用条件",
  term1:
    "マシンは Utsuwa を試すために使ってください。他者への攻撃、ほかの目的の計算、違法なものの保存や配布に使わないでください。",
  term2:
    "秘密の情報や、後で必要になるものを置かないでください。マシンは {minutes} 分後に削除されます。また、サイトの運営者は中を見ることができます。",
  term3: "いかなる保証もありません。セッションは予告なく終了することがあります。",
  term4:
    "セッションが終わるまで、Cookie を 1 つ使用します。アドレスは利用数の制限にのみ使われ、保存されません。統計に個人情報は含まれません。",
  terminalConnecting: "接続しています…",
  terminalLost: "接続が切れました。再接続しています…",
  terminalOpen: "あなたのマシンの root シェル",
  title: "Utsuwa を試す",
  timeLeft: "残り時間",
  tooMany:
    "お使いのネットワークアドレスからのセッションが上限に達しています。いずれかが終了するまでお待ちください。",
  tour: "ガイド付きツアー",
  turnLeft: "あなたの番はあと {minutes} 分です。",
  turnNow: "あなたの番です。このステップを離れると、その時点で終わります。",
  turnWaiting:
    "このステップを同時に行えるのは {most} 人までです。順番待ちの {place} 番目です。このままお待ちください。順番が来ると、コマンドを実行できるようになります。",
  unreachable: "サイトに接続できません。接続を確認して、もう一度お試しください。",
  warnFive: "残り 5 分です。残しておきたいものは、今のうちにターミナルからコピーしてください。",
  warnOne: "残り 1 分です。時間が終わるとコンテナは削除されます。",
};
