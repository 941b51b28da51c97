// Labelled fields of forms.
import type { ComponentChildren } from "preact";
import { useId } from "preact/hooks";

interface TextProps {
  label: string;
  value: string;
  onInput: (value: string) => void;
  help?: string;
  placeholder?: string;
  required?: boolean;
  autofocus?: boolean;
}

export function TextField({ label, value, onInput, help, placeholder, required, autofocus }: TextProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <input
        id={id}
        value={value}
        placeholder={placeholder}
        required={required}
        aria-describedby={help ? `${id}-help` : undefined}
        autofocus={autofocus}
        autocomplete="off"
        spellcheck={false}
        onInput={(event) => onInput(event.currentTarget.value)}
      />
      {help && <small id={`${id}-help`}>{help}</small>}
    </div>
  );
}

interface SelectProps {
  label: string;
  value: string;
  options: { value: string; label: string }[];
  onChange: (value: string) => void;
}

export function SelectField({ label, value, options, onChange }: SelectProps) {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{label}</label>
      <select id={id} value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map((option) => (
          <option key={option.value} value={option.value}>
            {option.label}
          </option>
        ))}
      </select>
    </div>
  );
}

interface CheckProps {
  label: string;
  checked: boolean;
  onChange: (checked: boolean) => void;
}

export function Check({ label, checked, onChange }: CheckProps) {
  return (
    <label class="check">
      <input type="checkbox" checked={checked} onChange={(event) => onChange(event.currentTarget.checked)} />
      {label}
    </label>
  );
}

export function Group({ label, children }: { label: string; children: ComponentChildren }) {
  return (
    <fieldset class="field">
      <legend>{label}</legend>
      <div class="checks">{children}</div>
    </fieldset>
  );
}
