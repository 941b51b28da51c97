// A small chart of the last minutes, with the present value as text.
interface Props {
  title: string;
  now: string;
  // Values from old to new, of one line or two.
  lines: number[][];
  // The value at the top; by default that of the highest point.
  top?: number;
}

const WIDTH = 120;
const HEIGHT = 40;
export const POINTS = 60;

function points(line: number[], top: number): string[] {
  const first = POINTS - line.length;
  return line.map((value, index) => {
    const x = ((first + index) / (POINTS - 1)) * WIDTH;
    const y = HEIGHT - 1 - (Math.min(value, top) / top) * (HEIGHT - 3);
    return `${x.toFixed(2)} ${y.toFixed(2)}`;
  });
}

export function Chart({ title, now, lines, top }: Props) {
  const highest = top ?? Math.max(1, ...lines.flat());
  const [main = [], second] = lines;
  const path = points(main, highest);
  const left = path[0]?.split(" ")[0] ?? "0";
  return (
    <section class="card chart">
      <header>
        <h2>{title}</h2>
        <span class="now">{now}</span>
      </header>
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
        {path.length > 1 && (
          <>
            <path class="area" d={`M${left} ${HEIGHT} L${path.join(" L")} L${WIDTH} ${HEIGHT} Z`} />
            <path class="line" d={`M${path.join(" L")}`} />
          </>
        )}
        {second && second.length > 1 && (
          <path class="line second" d={`M${points(second, highest).join(" L")}`} />
        )}
      </svg>
    </section>
  );
}
