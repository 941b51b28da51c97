// Texts of the tour: paragraphs, in which `backticks` mark what is typed or shown in a terminal.

export function Marked({ text }: { text: string }) {
  return <>{text.split("`").map((part, index) => (index % 2 ? <code key={index}>{part}</code> : part))}</>;
}

export function Prose({ text }: { text: string }) {
  return (
    <>
      {text.split("\n").map((paragraph) => (
        <p key={paragraph}>
          <Marked text={paragraph} />
        </p>
      ))}
    </>
  );
}
