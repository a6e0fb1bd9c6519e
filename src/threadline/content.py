"""What a model said: Gemini's content and parts, and the metadata that comes with them.

Field names and JSON names are those of google-genai 2.34. Enumerations are plain strings,
so a value that a newer model invents is kept like any other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from threadline.canonical import Model

if TYPE_CHECKING:
    from typing import Self


class Blob(Model):
    """Bytes inside a part; base64 in JSON."""

    data: bytes | None = None
    mime_type: str | None = None
    display_name: str | None = None


class FileData(Model):
    """A reference to a file that is stored elsewhere."""

    file_uri: str | None = None
    mime_type: str | None = None
    display_name: str | None = None


class PartialArg(Model):
    """One argument of a function call while it streams in."""

    json_path: str | None = None
    string_value: str | None = None
    number_value: float | None = None
    bool_value: bool | None = None
    null_value: str | None = None
    will_continue: bool | None = None


class FunctionCall(Model):
    """The model asks for a function to be called."""

    id: str | None = None
    name: str | None = None
    args: dict[str, Any] | None = None
    partial_args: list[PartialArg] | None = None
    will_continue: bool | None = None


class FunctionResponsePart(Model):
    """A medium in a function's answer."""

    inline_data: Blob | None = None
    file_data: FileData | None = None
    media_processing: str | None = None


class FunctionResponse(Model):
    """A function's answer; `id` is that of the call."""

    id: str | None = None
    name: str | None = None
    response: dict[str, Any] | None = None
    parts: list[FunctionResponsePart] | None = None
    scheduling: str | None = None
    will_continue: bool | None = None


class ExecutableCode(Model):
    """Code that the model wants run."""

    code: str | None = None
    language: str | None = None
    id: str | None = None


class CodeExecutionResult(Model):
    """What the code printed."""

    outcome: str | None = None
    output: str | None = None
    id: str | None = None


class ToolCall(Model):
    """A call of a tool that runs on the model's side."""

    id: str | None = None
    tool_type: str | None = None
    args: dict[str, Any] | None = None


class ToolResponse(Model):
    """The answer of a tool that runs on the model's side."""

    id: str | None = None
    tool_type: str | None = None
    response: dict[str, Any] | None = None


class VideoMetadata(Model):
    """Which stretch of a video is meant."""

    start_offset: str | None = None
    end_offset: str | None = None
    fps: float | None = None


class PartMediaResolution(Model):
    """How finely a medium is looked at."""

    level: str | None = None
    num_tokens: int | None = None


class WordInfo(Model):
    """One word of a transcription and when it was said."""

    word: str | None = None
    start_offset: str | None = None
    end_offset: str | None = None


class Transcription(Model):
    """What was heard, as text."""

    text: str | None = None
    finished: bool | None = None
    language_code: str | None = None
    speaker_label: str | None = None
    words: list[WordInfo] | None = None
    start_offset: str | None = None
    end_offset: str | None = None


class SpeechMetadata(Model):
    """Who speaks, and how."""

    speaker: str | None = None
    style: str | None = None


class Part(Model):
    """One piece of a content; as a rule exactly one of its payload fields is set."""

    text: str | None = None
    function_call: FunctionCall | None = None
    function_response: FunctionResponse | None = None
    inline_data: Blob | None = None
    file_data: FileData | None = None
    executable_code: ExecutableCode | None = None
    code_execution_result: CodeExecutionResult | None = None
    tool_call: ToolCall | None = None
    tool_response: ToolResponse | None = None
    audio_transcription: Transcription | None = None
    thought: bool | None = None
    thought_signature: bytes | None = None
    video_metadata: VideoMetadata | None = None
    media_resolution: PartMediaResolution | None = None
    media_processing: str | None = None
    speech_metadata: SpeechMetadata | None = None
    part_metadata: dict[str, Any] | None = None

    @classmethod
    def __adapt__(cls, value: Any) -> Any:
        """Take text as a part."""
        return {"text": value} if isinstance(value, str) else value

    @classmethod
    def from_text(cls, *, text: str) -> Self:
        """Make a part of text."""
        return cls(text=text)

    @classmethod
    def from_function_call(cls, *, name: str, args: dict[str, Any], id: str | None = None) -> Self:
        """Make a part that calls a function."""
        return cls(function_call=FunctionCall(id=id, name=name, args=args))

    @classmethod
    def from_function_response(
        cls, *, name: str, response: dict[str, Any], id: str | None = None
    ) -> Self:
        """Make a part that answers a function call."""
        return cls(function_response=FunctionResponse(id=id, name=name, response=response))

    @classmethod
    def from_bytes(cls, *, data: bytes, mime_type: str) -> Self:
        """Make a part that carries bytes."""
        return cls(inline_data=Blob(data=data, mime_type=mime_type))

    @classmethod
    def from_uri(cls, *, file_uri: str, mime_type: str | None = None) -> Self:
        """Make a part that points at a file."""
        return cls(file_data=FileData(file_uri=file_uri, mime_type=mime_type))


class Content(Model):
    """One message: who speaks (`user` or `model`) and the parts of what is said."""

    parts: list[Part] | None = None
    role: str | None = None

    @classmethod
    def __adapt__(cls, value: Any) -> Any:
        """Take text, a part (google-genai's too) or several of them as a content."""
        if isinstance(value, str) or type(value).__name__ == "Part":
            return {"parts": [value]}
        return {"parts": value} if isinstance(value, list) else value

    @property
    def text(self) -> str:
        """The text of all parts that are text and not thoughts, joined."""
        return "".join(p.text for p in self.parts or () if p.text and not p.thought)


# -- metadata that a model sends beside its content -------------------------------------


class ModalityTokenCount(Model):
    """Tokens of one modality."""

    modality: str | None = None
    token_count: int | None = None


class UsageMetadata(Model):
    """Tokens that a model call took (google-genai's GenerateContentResponseUsageMetadata)."""

    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    total_token_count: int | None = None
    cached_content_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    prompt_tokens_details: list[ModalityTokenCount] | None = None
    candidates_tokens_details: list[ModalityTokenCount] | None = None
    cache_tokens_details: list[ModalityTokenCount] | None = None
    tool_use_prompt_tokens_details: list[ModalityTokenCount] | None = None
    traffic_type: str | None = None


class AuthorAttribution(Model):
    """Who wrote a review."""

    display_name: str | None = None
    photo_uri: str | None = None
    uri: str | None = None


class ReviewSnippet(Model):
    """A piece of a review of a place."""

    author_attribution: AuthorAttribution | None = None
    flag_content_uri: str | None = None
    google_maps_uri: str | None = None
    relative_publish_time_description: str | None = None
    review: str | None = None
    review_id: str | None = None
    title: str | None = None


class PlaceAnswerSources(Model):
    """What an answer about a place rests on."""

    review_snippet: list[ReviewSnippet] | None = None
    review_snippets: list[ReviewSnippet] | None = None
    flag_content_uri: str | None = None


class MapsRoute(Model):
    """A route on a map."""

    distance_meters: int | None = None
    duration: str | None = None
    encoded_polyline: str | None = None


class GroundingChunkMaps(Model):
    """A place as a source."""

    place_answer_sources: PlaceAnswerSources | None = None
    place_id: str | None = None
    text: str | None = None
    title: str | None = None
    uri: str | None = None
    route: MapsRoute | None = None


class GroundingChunkImage(Model):
    """An image as a source."""

    source_uri: str | None = None
    image_uri: str | None = None
    title: str | None = None
    domain: str | None = None


class GroundingChunkWeb(Model):
    """A web page as a source."""

    domain: str | None = None
    title: str | None = None
    uri: str | None = None


class PageSpan(Model):
    """A range of pages."""

    first_page: int | None = None
    last_page: int | None = None


class RagChunk(Model):
    """A chunk of a retrieved document."""

    page_span: PageSpan | None = None
    text: str | None = None
    chunk_id: str | None = None
    file_id: str | None = None


class StringList(Model):
    """Several strings."""

    values: list[str] | None = None


class ChunkCustomMetadata(Model):
    """A field that the owner of a document gave it."""

    key: str | None = None
    numeric_value: float | None = None
    string_list_value: StringList | None = None
    string_value: str | None = None


class RetrievedContext(Model):
    """A retrieved document as a source."""

    document_name: str | None = None
    rag_chunk: RagChunk | None = None
    text: str | None = None
    title: str | None = None
    uri: str | None = None
    custom_metadata: list[ChunkCustomMetadata] | None = None
    file_search_store: str | None = None
    page_number: int | None = None
    media_id: str | None = None


class GroundingChunk(Model):
    """One source of an answer."""

    image: GroundingChunkImage | None = None
    maps: GroundingChunkMaps | None = None
    retrieved_context: RetrievedContext | None = None
    web: GroundingChunkWeb | None = None


class Segment(Model):
    """A stretch of the answer's text."""

    start_index: int | None = None
    end_index: int | None = None
    part_index: int | None = None
    text: str | None = None


class GroundingSupport(Model):
    """Which sources support which stretch of the answer."""

    confidence_scores: list[float] | None = None
    grounding_chunk_indices: list[int] | None = None
    segment: Segment | None = None
    rendered_parts: list[int] | None = None


class RetrievalMetadata(Model):
    """How retrieval was decided on."""

    google_search_dynamic_retrieval_score: float | None = None


class SearchEntryPoint(Model):
    """What is to be shown beside a grounded answer."""

    rendered_content: str | None = None
    sdk_blob: bytes | None = None


class SourceFlaggingUri(Model):
    """Where a source can be reported."""

    flag_content_uri: str | None = None
    source_id: str | None = None


class GroundingMetadata(Model):
    """What an answer rests on."""

    image_search_queries: list[str] | None = None
    grounding_chunks: list[GroundingChunk] | None = None
    grounding_supports: list[GroundingSupport] | None = None
    retrieval_metadata: RetrievalMetadata | None = None
    search_entry_point: SearchEntryPoint | None = None
    web_search_queries: list[str] | None = None
    google_maps_widget_context_token: str | None = None
    retrieval_queries: list[str] | None = None
    source_flagging_uris: list[SourceFlaggingUri] | None = None


class LogprobsCandidate(Model):
    """A token and how likely it was."""

    log_probability: float | None = None
    token: str | None = None
    token_id: int | None = None


class TopCandidates(Model):
    """The likeliest tokens at one place."""

    candidates: list[LogprobsCandidate] | None = None


class LogprobsResult(Model):
    """How likely the answer's tokens were."""

    chosen_candidates: list[LogprobsCandidate] | None = None
    top_candidates: list[TopCandidates] | None = None
    log_probability_sum: float | None = None


class Date(Model):
    """A day of the calendar; fields may be missing."""

    day: int | None = None
    month: int | None = None
    year: int | None = None


class Citation(Model):
    """A source that was quoted."""

    start_index: int | None = None
    end_index: int | None = None
    title: str | None = None
    uri: str | None = None
    license: str | None = None
    publication_date: Date | None = None


class CitationMetadata(Model):
    """The sources that were quoted."""

    citations: list[Citation] | None = None


class SessionResumptionUpdate(Model):
    """How a live connection can be resumed."""

    new_handle: str | None = None
    resumable: bool | None = None
    last_consumed_client_message_index: int | None = None


class GoAway(Model):
    """A live connection is about to be closed."""

    time_left: str | None = None


class VoiceActivity(Model):
    """Somebody began or stopped speaking."""

    voice_activity_type: str | None = None
    audio_offset: str | None = None
