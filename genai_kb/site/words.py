"""The fixed words of the site, in both languages."""

from __future__ import annotations

from genai_kb.models import Kind, Seen
from genai_kb.verdicts import Verdict

VERDICTS = {
    "en": {
        Verdict.REPRODUCED: "Reproduced",
        Verdict.NOT_REPRODUCED: "Not reproduced",
        Verdict.INCONCLUSIVE: "Inconclusive",
        Verdict.NOT_RUN: "Not run",
        Verdict.STALE: "Stale",
    },
    "es": {
        Verdict.REPRODUCED: "Reproducida",
        Verdict.NOT_REPRODUCED: "No reproducida",
        Verdict.INCONCLUSIVE: "Sin decidir",
        Verdict.NOT_RUN: "Sin ejecutar",
        Verdict.STALE: "Desactualizada",
    },
}


def counted(number: int, verdict: Verdict, language: str) -> str:
    """A verdict as a word beside a number of claims: 1 reproducida, 2 reproducidas."""
    word = VERDICTS[language][verdict].lower()
    agrees = language == "es" and number != 1 and word.endswith("a")
    return f"{word}s" if agrees else word


AMOUNTS = {
    "en": {
        "claims": ("{} claim", "{} claims"),
        "entries": ("{} entry", "{} entries"),
        "measured": ("{} measured", "{} measured"),
        "not_run": ("{} claim not run", "{} claims not run"),
    },
    "es": {
        "claims": ("{} afirmación", "{} afirmaciones"),
        "entries": ("{} entrada", "{} entradas"),
        "measured": ("{} medida", "{} medidas"),
        "not_run": ("{} afirmación sin ejecutar", "{} afirmaciones sin ejecutar"),
    },
}


def amount(number: int, name: str, language: str) -> str:
    """A number of things that AMOUNTS names, in the singular or plural."""
    one, many = AMOUNTS[language][name]
    return (one if number == 1 else many).format(number)


# what became of one clause of a condition
OUTCOMES = {
    "en": {
        Verdict.REPRODUCED: "Holds",
        Verdict.NOT_REPRODUCED: "Fails",
        Verdict.INCONCLUSIVE: "Undecided",
    },
    "es": {
        Verdict.REPRODUCED: "Se cumple",
        Verdict.NOT_REPRODUCED: "No se cumple",
        Verdict.INCONCLUSIVE: "Sin decidir",
    },
}

KINDS = {
    "en": {
        Kind.PAPER: "Paper",
        Kind.CONCEPT: "Concept",
        Kind.TEXTBOOK: "Textbook",
        Kind.TUTORIAL: "Tutorial",
        Kind.SURVEY: "Survey",
        Kind.TOOL: "Tool",
        Kind.METRIC: "Metric",
        Kind.BENCHMARK: "Benchmark",
        Kind.DATASET: "Dataset",
        Kind.SIMULATOR: "Simulator",
    },
    "es": {
        Kind.PAPER: "Artículo",
        Kind.CONCEPT: "Concepto",
        Kind.TEXTBOOK: "Libro de texto",
        Kind.TUTORIAL: "Tutorial",
        Kind.SURVEY: "Panorama",
        Kind.TOOL: "Herramienta",
        Kind.METRIC: "Métrica",
        Kind.BENCHMARK: "Banco de pruebas",
        Kind.DATASET: "Conjunto de datos",
        Kind.SIMULATOR: "Simulador",
    },
}

SEEN = {
    "en": {
        Seen.PAPER: "read in the paper",
        Seen.ABSTRACT: "read in the abstract",
        Seen.SECONDARY: "read in a secondary source",
        Seen.MEMORY: "not yet checked against the paper",
    },
    "es": {
        Seen.PAPER: "leído en el artículo",
        Seen.ABSTRACT: "leído en el resumen",
        Seen.SECONDARY: "leído en una fuente secundaria",
        Seen.MEMORY: "aún sin cotejar con el artículo",
    },
}

WORDS: dict[str, dict[str, str]] = {
    "en": {
        "after": "What comes next",
        "amended": "Changed on {date}",
        "amended_before": "Before",
        "arxiv": "arXiv",
        "authors": "Authors",
        "avoid": "Better avoided",
        "bands": "Lines, bars and points are means over five seeds; bands and whiskers are 95% intervals.",
        "before": "Read first",
        "by_hand": "given by hand",
        "catalogue": "Catalogue",
        "catalogue_lead": "All {count} entries of the roadmap in reading order, with the verdicts on their claims.",
        "changes": "What was changed before the counted run",
        "cite": "Cite",
        "claim": "Claim {number}",
        "claims": "Claims and verdicts",
        "claims_measured": "claims measured",
        "code": "Code",
        "code_explained": "The code, step by step",
        "commit": "Commit",
        "condition": "Condition",
        "conditions": "Conditions and what was measured",
        "cores": "{seconds} s for five seeds on two cores (processor time), {memory} MB a process",
        "discussion": "Why it came out so",
        "doi": "DOI",
        "entries": "entries",
        "environment": "Measured with",
        "estimate": "Estimate",
        "exact": "exact",
        "explained_in": "Explained in",
        "fetched": "checked against arXiv on {date}",
        "figure": "What we measured",
        "figure_table": "The figure's numbers",
        "full_code": "The whole file",
        "further_reading": "Further reading",
        "glossary": "Glossary",
        "glossary_lead": (
            "{count} terms of generative AI in English and Spanish. On the other pages a dotted line below a word leads here."
        ),
        "holds_if": "Reproduced if",
        "home_button": "Open the catalogue",
        "home_lead": (
            "Papers on generative AI in a good order. For each, what it claims, and a small PyTorch experiment that tests "
            "the claim over five seeds against a fair baseline. The verdict is computed, never written by hand."
        ),
        "home_title": "Generative AI, measured",
        "how": "How a verdict comes about",
        "idea": "Key idea",
        "interval": "95% interval",
        "kind": "Kind",
        "letters": "Letters of the glossary",
        "license": "Licence of the code",
        "measured_on": "Measured on",
        "method": "Method",
        "metric": "Metric",
        "metrics": "Metrics and the value of each seed",
        "name": "Name",
        "none_before": "Nothing: one can start here.",
        "not_fetched": "these facts were not fetched from arXiv itself",
        "not_run_yet": "There is no reproduction of this entry yet; its claims are registered and wait for one.",
        "nothing_after": "Nothing in the roadmap builds on this entry yet.",
        "open": "Still open",
        "open_lead": (
            "Of the {count} entries of the roadmap, {planned} are planned and have no page yet; {unrun} have a page with "
            "claims that were not run yet."
        ),
        "open_none": "Nothing is open here.",
        "open_title": "What is planned and not run",
        "outcome": "Outcome",
        "place": "Where",
        "planned": "Planned",
        "published": "Published",
        "questions": "Questions to test yourself",
        "roadmap": "Roadmap",
        "run": "Run it yourself",
        "run_lead": "One command measures the five seeds on your machine and shows the result beside the stored record:",
        "run_setup": "The first time it sets up a virtual environment with PyTorch.",
        "scale": "What shrank from the original to the miniature",
        "sections": "Sections",
        "site_description": "A roadmap of generative AI whose claims are measured.",
        "source": "Facts",
        "test": "Test here",
        "title": "Title",
        "topics": "Topics",
        "tracks": "Tracks",
        "trial": "What a trial had shown",
        "unverified": "not all of these facts were checked against a source",
        "venue": "Venue",
        "verdict": "Verdict",
        "withdrawn": "withdrawn by its authors",
        "year": "Year",
    },
    "es": {
        "after": "Qué sigue",
        "amended": "Cambio del {date}",
        "amended_before": "Antes",
        "arxiv": "arXiv",
        "authors": "Autores",
        "avoid": "Conviene evitar",
        "bands": "Líneas, barras y puntos son promedios de cinco semillas; bandas y bigotes, intervalos del 95 %.",
        "before": "Leer antes",
        "by_hand": "escritos a mano",
        "catalogue": "Catálogo",
        "catalogue_lead": "Las {count} entradas de la ruta, en orden de lectura, con los veredictos sobre sus afirmaciones.",
        "changes": "Qué se cambió antes de la corrida que cuenta",
        "cite": "Citar",
        "claim": "Afirmación {number}",
        "claims": "Afirmaciones y veredictos",
        "claims_measured": "afirmaciones medidas",
        "code": "Código",
        "code_explained": "El código, paso a paso",
        "commit": "Commit",
        "condition": "Condición",
        "conditions": "Condiciones y lo que se midió",
        "cores": "{seconds} s para cinco semillas en dos núcleos (tiempo de procesador), {memory} MB por proceso",
        "discussion": "Por qué salió así",
        "doi": "DOI",
        "entries": "entradas",
        "environment": "Medido con",
        "estimate": "Estimación",
        "exact": "exacto",
        "explained_in": "Se explica en",
        "fetched": "cotejados con arXiv el {date}",
        "figure": "Lo que medimos",
        "figure_table": "Los números de la figura",
        "full_code": "El archivo completo",
        "further_reading": "Para seguir leyendo",
        "glossary": "Glosario",
        "glossary_lead": (
            "{count} términos de la IA generativa en español e inglés, con las traducciones que conviene evitar. "
            "En las demás páginas, una línea de puntos debajo de una palabra lleva hasta aquí."
        ),
        "holds_if": "Reproducida si",
        "home_button": "Abrir el catálogo",
        "home_lead": (
            "Artículos sobre IA generativa en un buen orden. De cada uno, qué afirma y un experimento pequeño en PyTorch "
            "que pone a prueba la afirmación con cinco semillas y una línea de base justa. El veredicto se calcula; "
            "nadie lo escribe a mano."
        ),
        "home_title": "La IA generativa, medida",
        "how": "Cómo se llega a un veredicto",
        "idea": "Idea clave",
        "interval": "Intervalo del 95 %",
        "kind": "Tipo",
        "letters": "Letras del glosario",
        "license": "Licencia del código",
        "measured_on": "Medido el",
        "method": "Método",
        "metric": "Métrica",
        "metrics": "Métricas y valor de cada semilla",
        "name": "Nombre",
        "none_before": "Nada: se puede empezar aquí.",
        "not_fetched": "estos datos no se obtuvieron de arXiv mismo",
        "not_run_yet": "Esta entrada aún no tiene reproducción; sus afirmaciones están registradas y la esperan.",
        "nothing_after": "Ninguna entrada de la ruta se apoya todavía en esta.",
        "open": "Pendiente",
        "open_lead": (
            "De las {count} entradas de la ruta, {planned} están planeadas y aún no tienen página; {unrun} tienen página "
            "con afirmaciones que todavía no se ejecutaron."
        ),
        "open_none": "Aquí no queda nada pendiente.",
        "open_title": "Qué está planeado y qué falta ejecutar",
        "outcome": "Resultado",
        "place": "Dónde",
        "planned": "Planeada",
        "published": "Publicación",
        "questions": "Preguntas para ponerse a prueba",
        "roadmap": "Ruta",
        "run": "Ejecútalo tú mismo",
        "run_lead": "Un comando mide las cinco semillas en tu máquina y muestra el resultado junto al registro guardado:",
        "run_setup": "La primera vez prepara un entorno virtual con PyTorch.",
        "scale": "Qué se redujo del original a la miniatura",
        "sections": "Secciones",
        "site_description": "Una ruta por la IA generativa cuyas afirmaciones se miden.",
        "source": "Datos",
        "test": "Prueba",
        "title": "Título",
        "topics": "Temas",
        "tracks": "Áreas",
        "trial": "Lo que había mostrado un ensayo",
        "unverified": "no todos estos datos se cotejaron con una fuente",
        "venue": "Revista o congreso",
        "verdict": "Veredicto",
        "withdrawn": "retirado por sus autores",
        "year": "Año",
    },
}
