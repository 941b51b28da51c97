// Parts that all views have: the heading, what is shown while there is nothing, tabs.
import type { ComponentChildren } from "preact";
import { useEffect } from "preact/hooks";
import type { ApiError } from "../api/client";
import { t } from "../i18n";
import { href, type Place } from "../router";
import { Icon } from "./icon";

interface HeadProps {
  title: string;
  // Where the heading leads back to.
  above?: { label: string; place: Partial<Place> };
  children?: ComponentChildren;
}

export function Head({ title, above, children }: HeadProps) {
  useEffect(() => {
    document.title = `${title} – Utsuwa`;
  }, [title]);
  return (
    <div class="head">
      {above && (
        <a class="button quiet icon" href={href(above.place)} aria-label={above.label} title={above.label}>
          <Icon name="back" />
        </a>
      )}
      <h1>{title}</h1>
      {children}
    </div>
  );
}

export function Problem({ error }: { error: ApiError }) {
  return (
    <p class="error" role="alert">
      {error.message}
    </p>
  );
}

export function Loading() {
  return (
    <p class="empty" role="status">
      {t("loading")}
    </p>
  );
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <div class="empty">{children}</div>;
}

interface TabsProps {
  label: string;
  current: string;
  place: Partial<Place>;
  tabs: { tab: string; label: string }[];
}

export function Tabs({ label, current, place, tabs }: TabsProps) {
  return (
    <nav class="tabs" aria-label={label}>
      {tabs.map(({ tab, label: text }) => (
        <a key={tab} href={href({ ...place, tab })} aria-current={tab === current ? "page" : undefined}>
          {text}
        </a>
      ))}
    </nav>
  );
}

export function Card({ title, children }: { title: string; children: ComponentChildren }) {
  return (
    <section class="card">
      <h2>{title}</h2>
      {children}
    </section>
  );
}

export function Facts({ facts }: { facts: [string, ComponentChildren][] }) {
  return (
    <dl class="facts">
      {facts.map(([term, value]) => (
        <>
          <dt>{term}</dt>
          <dd>{value}</dd>
        </>
      ))}
    </dl>
  );
}

export function Tags({ values }: { values: string[] }) {
  return (
    <span class="tags">
      {values.map((value) => (
        <span key={value} class="tag">
          {value}
        </span>
      ))}
    </span>
  );
}
