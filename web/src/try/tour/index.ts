// The texts of the tour's steps, by language.
import { fill, type Language, language } from "../../i18n/language";
import type { Checked } from "../site";
import { en } from "./en";
import { ja } from "./ja";

export interface StepText {
  title: string;
  // Paragraphs, with what is typed or shown in `backticks`.
  why: string;
  look: string;
}

export interface Tour {
  // By the ids that the site gives to the steps.
  steps: Record<string, StepText>;
  // What is missing, by the codes of the site's checks.
  hints: Record<string, string>;
  // Of codes without a text.
  otherHint: string;
}

const TOURS: Record<Language, Tour> = { en, ja };

// A step that has no text yet is still one whose commands can be run.
export function textOf(id: string): StepText {
  return TOURS[language()].steps[id] ?? { title: id, why: "", look: "" };
}

export function hintOf({ hint, data }: Checked): string {
  const { hints, otherHint } = TOURS[language()];
  return fill(hints[hint] ?? otherHint, { name: "first", ...data });
}
