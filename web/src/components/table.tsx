// A table that sorts. Of a long one only the rows in sight are in the document.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { byName } from "../order";

export interface Column<T> {
  title: string;
  cell: (row: T) => ComponentChildren;
  order?: (row: T) => string | number;
  class?: string;
}

interface Props<T> {
  label: string;
  rows: T[];
  columns: Column<T>[];
  keyOf: (row: T) => string;
}

const MANY = 40;
const ROW = 45; // pixels of a row with its border, until some have been measured
const MARGIN = 6; // rows beyond the edges

function compare(a: string | number, b: string | number): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return byName(String(a), String(b));
}

interface Sight {
  first: number;
  last: number;
  row: number; // pixels of a row
}

// The mean height of the rows that are in the document.
function measure(box: HTMLElement): number {
  const rows = box.querySelectorAll("tr[aria-rowindex]");
  const top = rows[0]?.getBoundingClientRect().top;
  const bottom = rows[rows.length - 1]?.getBoundingClientRect().bottom;
  return top !== undefined && bottom !== undefined && bottom > top ? (bottom - top) / rows.length : ROW;
}

function isSame(one: Sight, other: Sight): boolean {
  return one.first === other.first && one.last === other.last && one.row === other.row;
}

function useSight(count: number) {
  const box = useRef<HTMLElement>(null);
  const [sight, setSight] = useState<Sight>({ first: 0, last: MANY, row: ROW });
  useEffect(() => {
    const element = box.current;
    if (!element || count <= MANY) return undefined;
    let row = ROW;
    const look = () => {
      const first = Math.min(Math.max(0, Math.floor(element.scrollTop / row) - MARGIN), count - 1);
      const last = Math.ceil((element.scrollTop + element.clientHeight) / row) + MARGIN;
      setSight((old) => (isSame(old, { first, last, row }) ? old : { first, last, row }));
    };
    // Rows change with the width and the zoom. While they are scrolled, one height holds, lest they jump.
    const observer = new ResizeObserver(() => {
      row = measure(element);
      look();
    });
    observer.observe(element);
    element.addEventListener("scroll", look, { passive: true });
    return () => {
      observer.disconnect();
      element.removeEventListener("scroll", look);
    };
  }, [count]);
  return { box, ...(count > MANY ? sight : { first: 0, last: count, row: ROW }) };
}

export function Table<T>({ label, rows, columns, keyOf }: Props<T>) {
  const [sorting, setSorting] = useState({ column: -1, down: false });
  const order = columns[sorting.column]?.order;
  const sorted = order
    ? [...rows].sort((a, b) => compare(order(a), order(b)) * (sorting.down ? -1 : 1))
    : rows;
  const { box, first, last, row: height } = useSight(sorted.length);
  const below = Math.max(0, sorted.length - last);

  const sortBy = (column: number) =>
    setSorting((old) => ({ column, down: old.column === column ? !old.down : false }));

  return (
    <section
      class={`table-box ${rows.length > MANY ? "tall" : ""}`}
      ref={box}
      // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
      tabIndex={0}
      aria-label={label}
    >
      <table aria-rowcount={sorted.length + 1}>
        <thead>
          <tr>
            {columns.map((column, index) => (
              <th
                key={column.title}
                scope="col"
                class={column.class}
                aria-sort={sorting.column === index ? (sorting.down ? "descending" : "ascending") : undefined}
              >
                {column.order ? (
                  <button type="button" onClick={() => sortBy(index)}>
                    {column.title}
                    {sorting.column === index && (sorting.down ? " ↓" : " ↑")}
                  </button>
                ) : (
                  column.title || <span class="hidden">…</span>
                )}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {first > 0 && <Spacer height={first * height} columns={columns.length} />}
          {sorted.slice(first, last).map((row, index) => (
            <tr key={keyOf(row)} aria-rowindex={first + index + 2}>
              {columns.map((column) => (
                <td key={column.title} class={column.class}>
                  {column.cell(row)}
                </td>
              ))}
            </tr>
          ))}
          {below > 0 && <Spacer height={below * height} columns={columns.length} />}
        </tbody>
      </table>
    </section>
  );
}

function Spacer({ height, columns }: { height: number; columns: number }) {
  return (
    <tr>
      <td class="spacer" colSpan={columns} style={{ height: `${height}px` }} />
    </tr>
  );
}
